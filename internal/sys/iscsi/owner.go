package iscsi

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"golang.org/x/sys/unix"
)

// owner marks the sessions of one server, so that it knows them again after it was killed, and no other server takes them for
// its own. Both marks say which run directory it is; there is one server on it at a time.
type owner struct {
	// port is the netlink port from which sessions are created. The kernel keeps it with the session, from its first moment on:
	// creator in sysfs. It is negative there, as no program's is that lets the kernel choose and takes its process id.
	port uint32
	// mark stands behind the target's name in the name of the interface: ifacename in sysfs.
	mark string
}

// owner returns the owner that uses the directory, whatever its path is.
func (e Env) owner() (owner, error) {
	var st unix.Stat_t
	if err := unix.Stat(e.Dir, &st); err != nil {
		return owner{}, fmt.Errorf("look at run directory %q: %w", e.Dir, err)
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%d:%d", st.Dev, st.Ino))
	const negative = 1 << 31
	return owner{port: binary.BigEndian.Uint32(sum[:]) | negative, mark: e.Program + ":" + hex.EncodeToString(sum[:12])}, nil
}

// iface returns the name of the interface of sessions with a target. Names of targets have no blanks.
func (o owner) iface(target string) string { return target + " " + o.mark }
