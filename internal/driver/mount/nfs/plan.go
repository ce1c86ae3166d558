package nfs

import (
	"fmt"
	"slices"
	"strings"

	"github.com/kraken-hpc/imageapi/internal/driver/hostport"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/mount"
)

const defaultVersion = "4.2"

// versions are those of the protocol, as the kernel is told: without the minor version it would take 4.0.
var versions = map[string]string{"3": "3", "4": "4.0", "4.0": "4.0", "4.1": "4.1", "4.2": "4.2"}

// maxSource is the longest "host:/path" that fsconfig(2) takes, in bytes.
const maxSource = 255

// options are the options of a definition, sorted.
type options struct {
	mount.Options
	network   string // of the server's address, as package net calls it: "ip", "ip4" or "ip6"
	mountHost string // for version 3: who is asked for the export, if it is not the server
	kerberos  bool   // the client wants the server and itself to prove who they are
	locks     bool   // for version 3: the client has said how files are locked
}

// refused are the options that can't be passed on, and why.
var refused = map[string]string{
	"bg":           "a mount is complete when the request returns; create it again if it fails",
	"fg":           "a mount is always complete when the request returns",
	"retry":        "the server tries once, within --create-timeout",
	"sloppy":       "no option is ever ignored",
	"source":       "use the fields host and path",
	"addr":         "use the field host",
	"clientaddr":   "the server sets this option",
	"vers":         "use the field version",
	"nfsvers":      "use the field version",
	"minorversion": "use the field version",
	"v2":           "use the field version", "v3": "use the field version", "v4": "use the field version",
	"v4.0": "use the field version", "v4.1": "use the field version", "v4.2": "use the field version",
}

// networks are the kinds of addresses that go with a transport.
var networks = map[string]string{
	"tcp": "ip4", "udp": "ip4", "rdma": "ip4",
	"tcp6": "ip6", "udp6": "ip6", "rdma6": "ip6",
}

// plan checks the definition and finds out what the kernel is to be told.
func (u *unit) plan(faults *errs.Faults) {
	u.parseOptions(faults)
	if versions[u.Version] == "" {
		faults.Add("nfs.version", "%q is not a version that can be mounted: use 3, 4.0, 4.1 or 4.2", u.Version)
	}
	host := u.planHost(faults)
	switch {
	case u.Path == "":
		faults.Add("nfs.path", "is required: the directory, as the server exports it")
	case !strings.HasPrefix(u.Path, "/"):
		faults.Add("nfs.path", "%q must be absolute", u.Path)
	case strings.ContainsRune(u.Path, 0):
		faults.Add("nfs.path", "contains a NUL")
	}
	u.source = host + ":" + u.Path
	if len(u.source) > maxSource {
		faults.Add("nfs.path", "is too long: host and path together may have %d bytes", maxSource-1)
	}
}

// planHost checks the host and returns it as it stands before the path: an IPv6 address in brackets.
func (u *unit) planHost(faults *errs.Faults) string {
	host, err := hostport.Parse(u.Host)
	u.address = host.String()
	addr := host.Addr
	switch {
	case u.Host == "":
		faults.Add("nfs.host", "is required: the server's name or address")
	case err != nil || host.Port != 0:
		faults.Add("nfs.host", "%q is neither a name nor an address", u.Host)
	case u.options.network == "ip4" && addr.Is6() || u.options.network == "ip6" && addr.Is4():
		faults.Add("nfs.host", "%s cannot be reached: the option proto is for the other kind of addresses", u.address)
	case addr.Is6():
		return "[" + u.address + "]"
	}
	return u.address
}

func (u *unit) parseOptions(faults *errs.Faults) {
	for i, text := range u.FSOptions {
		path := fmt.Sprintf("nfs.options[%d]", i)
		parsed, err := mount.ParseOptions([]string{text})
		if err != nil {
			faults.Add(path, "%v", err)
		}
		if parsed.Writable && u.ReadOnly {
			faults.Add(path, `"rw" contradicts the field ro`)
		}
		for _, p := range parsed.Params {
			if why := refused[p.Key]; why != "" {
				faults.Add(path, "%q cannot be used: %s", p, why)
			}
		}
	}
	all, _ := mount.ParseOptions(u.FSOptions) // its errors have been noted
	u.options = options{Options: all, network: "ip"}
	u.options.Params = slices.DeleteFunc(u.options.Params, u.options.take)
}

// take notes what an option means to us, and reports whether it is not for the kernel.
func (o *options) take(p mount.Param) bool {
	switch p.Key {
	case "proto":
		if network := networks[p.Value]; network != "" {
			o.network = network
		}
	case "tcp", "udp", "rdma":
		o.network = networks[p.Key]
	case "sec":
		o.kerberos = strings.Contains(p.Value, "krb5")
	case "lock", "nolock", "local_lock":
		o.locks = true
	case "mounthost":
		o.mountHost = p.Value // the kernel knows the name, but only asks mountaddr
		return true
	}
	return false
}

func (u *unit) readOnly() bool { return u.ReadOnly || u.options.ReadOnly }
