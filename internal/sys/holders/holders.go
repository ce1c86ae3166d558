// Package holders finds out who holds a block device or a mount, so that "busy" can be answered with names.
//
// The kernel has no such question. The answer is put together from /proc and /sys, and from nothing else: no file
// on a mount that may be stuck (a dead NFS server) is ever opened or stat'ed. It is a picture of a moment; processes
// that end meanwhile are left out. What it can't see: mount namespaces that no process lives in, mounts that are not
// attached anywhere, and namespaces or working directories that single threads of a process keep for themselves.
package holders

import (
	"fmt"
	"strings"
	"unicode"
)

// Holder is somebody who holds a device or a mount.
type Holder struct {
	PID     int    // in the daemon's pid namespace; 0 if the kernel itself holds it
	Command string // as in /proc/PID/comm
	MountNS uint64 // inode of its mount namespace if that is not the daemon's, else 0
	What    string // "has /dev/loop3 open"; if PID is 0 a whole sentence, "the device is mounted at /mnt"
	Device  string // the kernel's name of the block device that is built on the one that is held, if that is the holder
}

// String returns the holder as it stands in an error message, without control characters.
func (h Holder) String() string {
	text := h.What
	switch {
	case h.PID != 0 && h.MountNS != 0:
		text = fmt.Sprintf("pid %d (%s, other mount namespace %d) %s", h.PID, h.Command, h.MountNS, h.What)
	case h.PID != 0:
		text = fmt.Sprintf("pid %d (%s) %s", h.PID, h.Command, h.What)
	}
	return strings.Map(printable, text)
}

// maxNamed is how many holders Text names.
const maxNamed = 5

// Text names the first few holders and counts the rest. It is empty if there are none.
func Text(all []Holder) string {
	named := all[:min(len(all), maxNamed)]
	texts := make([]string, len(named), len(named)+1)
	for i, h := range named {
		texts[i] = h.String()
	}
	if rest := len(all) - len(named); rest > 0 {
		texts = append(texts, fmt.Sprintf("and %d more", rest))
	}
	return strings.Join(texts, "; ")
}

// printable keeps a process from writing terminal codes into logs by way of its name.
func printable(r rune) rune {
	if unicode.IsPrint(r) {
		return r
	}
	return '?'
}
