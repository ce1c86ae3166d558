package rbd

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"regexp"
	"slices"
	"strings"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/secretfile"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/rbd"
	"github.com/kraken-hpc/imageapi/models"
)

// Plan checks the definition; names of monitors are resolved in Up.
func (d *Driver) Plan(def driver.Object, faults *errs.Faults) (driver.Unit, []driver.Need) {
	if def.Attach == nil || def.Attach.Rbd == nil {
		faults.Add("rbd", "is required for an attachment of kind rbd")
		return nil, nil
	}
	r := def.Attach.Rbd
	u := &unit{driver: d, Mark: rand.Text(), Monitors: slices.Clone(r.Monitors), Pool: driver.Value(r.Pool), Image: driver.Value(r.Image), Snapshot: r.Snapshot}
	u.checkImage(faults)
	if r.Options == nil {
		faults.Add("rbd.options", "is required: its name and secret say who asks the cluster")
	} else {
		u.Options = *r.Options
		u.Options.Name, u.Options.Secret = nil, nil
		u.User, u.secret = driver.Value(r.Options.Name), new(secret(driver.Value(r.Options.Secret)))
		u.checkUser(faults)
		u.checkOptions(faults)
	}
	return u, nil
}

func (u *unit) checkImage(faults *errs.Faults) {
	if n := len(u.Monitors); n == 0 || n > rbd.MaxMonitors {
		faults.Add("rbd.monitors", "are %d; the kernel takes 1 to %d", n, rbd.MaxMonitors)
	}
	for i, m := range u.Monitors {
		if _, err := parseHost(m); err != nil {
			addAt(faults, "rbd.monitors", i, err.Error())
		}
	}
	for _, f := range []struct {
		path, name string
		required   bool
	}{{"rbd.pool", u.Pool, true}, {"rbd.image", u.Image, true}, {"rbd.snapshot", u.Snapshot, false}} {
		if f.name == "" && f.required {
			faults.Add(f.path, "is required")
		}
		if fault := rbd.CheckName(f.name); fault != "" {
			faults.Add(f.path, "%s", fault)
		}
	}
	const longest = 250 // RBD_MAX_SNAP_NAME_LEN
	switch {
	case u.Snapshot == "-":
		faults.Add("rbd.snapshot", `"-" means no snapshot to the kernel: leave it out`)
	case len(u.Snapshot) > longest:
		faults.Add("rbd.snapshot", "is %d bytes long; the kernel takes %d", len(u.Snapshot), longest)
	}
}

func (u *unit) checkUser(faults *errs.Faults) {
	const name, key, file = "rbd.options.name", "rbd.options.secret", "rbd.options.secret_file"
	switch {
	case u.User == "":
		faults.Add(name, "is required: the Ceph user")
	case strings.HasPrefix(u.User, "client."):
		faults.Add(name, `must be without the leading "client."`)
	}
	if fault := rbd.CheckValue(u.User); fault != "" {
		faults.Add(name, "%s", fault)
	}
	secretfile.Check(faults, file, u.Options.SecretFile, string(*u.secret))
	if u.Options.SecretFile != "" {
		return
	}
	if *u.secret == "" {
		faults.Add(key, "is required, or secret_file: the user's key, which answers never hold, so that it has to be put in again")
	} else if _, err := u.secret.decode(); err != "" {
		faults.Add(key, "%s", err)
	}
}

// secret is a user's key in base64. It does not show itself.
type secret string

// String says that there is one.
func (s secret) String() string { return "[secret]" }

// GoString says that there is one.
func (s secret) GoString() string { return "[secret]" }

// decode returns the key in binary, and what is wrong with it, or "". The form is Ceph's CryptoKey: type, time of creation
// (12 bytes together with it: 2 + 8), length, and as many bytes.
func (s secret) decode() (rbd.Secret, string) {
	const lengthAt, keyAt = 10, 12
	data, err := base64.StdEncoding.DecodeString(string(s))
	switch {
	case err != nil:
		return nil, "is not base64"
	case len(data) <= keyAt || int(binary.LittleEndian.Uint16(data[lengthAt:])) != len(data)-keyAt:
		return nil, "is not a key as Ceph makes it (ceph auth get-key)"
	}
	return data, ""
}

// pairs are options of which one is the opposite of the other.
func pairs(o *models.RbdOptions) []pair {
	return []pair{
		{"share", "noshare", o.Share, o.Noshare},
		{"crc", "nocrc", o.Crc, o.Nocrc},
		{"ceph_requires_signatures", "noceph_requires_signatures", o.CephRequiresSignatures, o.NocephRequiresSignatures},
		{"cephx_sign_messages", "nocephx_sign_messages", o.CephxSignMessages, o.NocephxSignMessages},
		{"tcp_nodelay", "notcp_nodelay", o.TCPNodelay, o.NotcpNodelay},
		{"rw", "ro", o.Rw, o.Ro},
	}
}

type pair struct {
	one, other       string
	oneSet, otherSet bool
}

// number is an option with a range: the kernel's, if it has one.
type number struct {
	name        string
	value       int64
	least, most int64
}

// most is the largest number of seconds that the kernel takes: INT_MAX / 1000.
const most = 2147483

func numbers(o *models.RbdOptions) []number {
	return []number{
		{"mount_timeout", o.MountTimeout, 1, most},
		{"osdkeepalive", o.Osdkeepalive, 1, most},
		{"osd_idle_ttl", o.OsdIdleTTL, 1, most},
		{"lock_timeout", o.LockTimeout, 1, most},
		{"queue_depth", o.QueueDepth, 1, 10240}, // BLK_MQ_MAX_DEPTH
		{"alloc_size", o.AllocSize, 512, 1 << 31},
	}
}

var uuid = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)

// modes of ms_mode, and whether they speak version 2 of the messenger's protocol.
var modes = map[string]bool{"": false, "legacy": false, "crc": true, "secure": true, "prefer-crc": true, "prefer-secure": true}

func (u *unit) checkOptions(faults *errs.Faults) {
	o := &u.Options
	for _, p := range pairs(o) {
		if p.oneSet && p.otherSet {
			faults.Add("rbd.options."+p.one, "is the opposite of %s: give one of them", p.other)
		}
	}
	for _, n := range numbers(o) {
		if n.value != 0 && (n.value < n.least || n.value > n.most) {
			faults.Add("rbd.options."+n.name, "is %d; use %d to %d", n.value, n.least, n.most)
		}
	}
	if o.AllocSize&(o.AllocSize-1) != 0 {
		faults.Add("rbd.options.alloc_size", "must be a power of 2")
	}
	if o.Fsid != "" && !uuid.MatchString(o.Fsid) {
		faults.Add("rbd.options.fsid", "must be a UUID")
	}
	if o.IP != "" {
		if _, err := parseHost(o.IP); err != nil {
			faults.Add("rbd.options.ip", "%s", err)
		}
	}
	if fault := rbd.CheckValue(o.Namespace); fault != "" {
		faults.Add("rbd.options.namespace", "%s", fault)
	}
	if _, known := modes[o.MsMode]; !known {
		faults.Add("rbd.options.ms_mode", "must be legacy, crc, secure, prefer-crc or prefer-secure")
	}
}

// ignored says which options have no effect, and why. The kernel takes them all the same.
func (u *unit) ignored() (warnings []string) {
	o := &u.Options
	snapshot := u.Snapshot != ""
	for _, w := range []struct {
		is  bool
		say string
	}{
		{o.CephRequiresSignatures, "ceph_requires_signatures: the kernel ignores it"},
		{o.NocephRequiresSignatures, "noceph_requires_signatures: the kernel ignores it; use nocephx_sign_messages"},
		{o.Rw && snapshot, "rw: a snapshot is read-only"},
		{o.Exclusive && (o.Ro || snapshot), "exclusive: a read-only mapping takes no lock"},
		{o.LockOnRead && (o.Ro || snapshot), "lock_on_read: a read-only mapping takes no lock"},
		{o.LockTimeout != 0 && !o.Exclusive && !o.LockOnRead, "lock_timeout: effective only with exclusive or lock_on_read"},
	} {
		if w.is {
			warnings = append(warnings, "rbd.options."+w.say)
		}
	}
	return warnings
}
