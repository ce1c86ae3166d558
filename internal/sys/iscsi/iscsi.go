// Package iscsi is an iSCSI initiator (RFC 7143) over the kernel's own: the module iscsi_tcp moves data and keeps the
// session, and this package does what the kernel leaves to a program. That is logging in, logging in again when the
// connection is lost, and logging out. No other program is needed on the node.
//
// The way to the kernel is netlink, NETLINK_ISCSI, with the messages of include/scsi/iscsi_if.h, and sysfs.
//
// # Other initiators
//
// The kernel tells events of all sessions to all programs that listen, open-iscsi's iscsid among them. A [Session] heeds
// those of the session that it has made, by its number, and nothing else; sessions of others are never touched. One that
// another program has, to the same target with the same initiator name, is a conflict: the target would end it for ours.
//
// iscsid does likewise as long as it runs. But when it starts it recovers all sessions that it finds, and logs in to them again
// as its own configuration says, without our secrets. It passes over those without a target name; so the kernel is not
// told that of ours. The name of the interface, which means nothing to iscsi_tcp, holds it instead, with a mark of the server.
//
// # Without the server
//
// A session outlives the server that has made it: the kernel has the socket, and needs a program only to log in again. [Env.Leftovers]
// finds what an earlier server on the same run directory has left, by marks that the kernel keeps with each session; see [Leftover].
package iscsi

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
)

// DefaultPort is the TCP port of a portal where none is given.
const DefaultPort = 3260

// Config says how to log in to a target.
type Config struct {
	Initiator string   // name of this node
	Target    string   // name of the target
	Portals   []Portal // of the target, in the order in which they are tried
	Auth      Auth     // who we are and who the target must be; the zero value is nobody

	HeaderDigest bool // demand a CRC32C of each header; else the target may ask for one
	DataDigest   bool // the same of all data

	MaxCommands int           // commands under way in the session, those of the session itself included
	Replacement time.Duration // how long I/O waits for a lost connection before it fails, in whole seconds
}

// Auth is what CHAP (RFC 1994) needs.
type Auth struct {
	Name, Secret             string // of the initiator; an empty Name: no authentication
	TargetName, TargetSecret string // that the target must prove to have; an empty TargetName: it need not
}

// Format writes the names alone, whatever the verb: secrets must not get into logs by accident.
func (a Auth) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "CHAP as %q with %q", a.Name, a.TargetName)
}

// Known reports whether the secrets that are needed are there.
func (a Auth) Known() bool {
	return (a.Name == "" || a.Secret != "") && (a.TargetName == "" || a.TargetSecret != "")
}

// Portal is an address that a target listens on.
type Portal struct {
	Host string // name or address
	Port int
}

// String returns the portal as host:port.
func (p Portal) String() string { return net.JoinHostPort(p.Host, strconv.Itoa(p.Port)) }

// isid returns our part of the session's identity, of the type "random" (RFC 7143, 11.12.5). It follows from the two names,
// so that there is one session between them: when the node comes back after a crash, its login ends what was left.
func (c *Config) isid() (id [6]byte) {
	sum := sha256.Sum256(fmt.Append(nil, c.Initiator, "\x00", c.Target))
	copy(id[:], sum[:])
	id[0] = 0x80
	return id
}

// Env is what sessions work with.
type Env struct {
	Failpoint failpoint.Hook
	Dir       string       // the run directory: what sessions are marked with
	Log       *slog.Logger // of what happens to a connection by itself
	// Backoff is the time between attempts to log in again: it begins with Min, doubles up to Max, and is jittered
	// by half, so that the nodes of a cluster do not all come at once when a target is back.
	Backoff struct{ Min, Max time.Duration }
	Changed func() // is told when the state of a session or of one of its units has changed; may be nil. It must not wait.
	Helper  Helper // does what can hang
	Modules Modules
	// Program begins the marks of sessions.
	Program string
	// Users describes the users of the disk with a device number (st_rdev), or returns "" if it finds none.
	Users func(number uint64) string
}

// Modules loads modules of the kernel.
type Modules interface {
	Load(ctx context.Context, name string) error
	// Find returns an error if the node does not have the module. It loads nothing.
	Find(ctx context.Context, name string) error
}

// load loads a kernel module unless what it brings is there. The kernel loads most others by itself.
func (e Env) load(ctx context.Context, brings, name string) error {
	if _, err := os.Stat(brings); err == nil {
		return nil
	}
	return e.Modules.Load(ctx, name)
}

// Find fails as Open would if the node lacks the initiator, or if somebody else has a session between these two. It loads
// nothing and asks no target.
func (e Env) Find(ctx context.Context, c Config) error {
	if _, err := os.Stat(transport); err == nil {
		return c.checkFree()
	}
	return e.Available(ctx)
}

// Available returns an error if the node lacks the initiator. It loads nothing.
func (e Env) Available(ctx context.Context) error {
	if _, err := os.Stat(transport); err == nil {
		return nil
	}
	return e.Modules.Find(ctx, moduleName)
}

const moduleName = "iscsi_tcp"

// State is where a session is.
type State int32

// The states of a session.
const (
	LoggedIn   State = iota // I/O flows
	Recovering              // the connection is lost; I/O waits and the login is tried again
	Failed                  // the same, but for longer than Config.Replacement: I/O fails
)

// String returns the state as the API shows it.
func (s State) String() string {
	return [...]string{"logged_in", "recovering", "failed"}[s]
}
