// Package cluster asks a Ceph cluster about an image before the kernel maps it: the kernel's own answer is a bare errno.
//
// It does so with Ceph's libraries if it was built with the tag "ceph" (see build/ceph.mk), and knows nothing otherwise.
package cluster

import (
	"net/netip"
	"time"
)

// Query names an image and who asks.
type Query struct {
	Monitors  []netip.AddrPort
	Messenger int    // version of the protocol that the ports of Monitors speak: 1 or 2
	User      string // without "client."
	Secret    string // in base64
	Pool      string
	Namespace string // may be empty
	Image     string
	Snapshot  string // may be empty
	// Timeout is for each step of the answer; less if half of what the context leaves is less.
	Timeout time.Duration
}

// Answer is what the cluster says about an image.
type Answer struct {
	Features uint64
	Users    []User
}

// User is a client that watches or locks an image.
type User struct {
	Address string // with port and nonce, as Ceph writes it
	Client  string // "client.4118"
	How     string // "watches it" or "locks it"
}
