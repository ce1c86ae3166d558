package holders

import (
	"encoding/binary"
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What golang.org/x/sys has no names for: ioctl_nsfs(2), listmount(2), statmount(2).
const (
	nextNamespace = 0x8010b70b // NS_MNT_GET_NEXT, Linux 6.12
	lastNamespace = 0x8010b70c // NS_MNT_GET_PREV
	fromRoot      = ^uint64(0) // LSMT_ROOT
	askNumber     = 1          // STATMOUNT_SB_BASIC
)

// mountNamespace is struct mnt_ns_info.
type mountNamespace struct {
	size, mounts uint32
	id           uint64
}

// mountRequest is struct mnt_id_req.
type mountRequest struct {
	size, _   uint32
	mount     uint64
	param     uint64
	namespace uint64
}

var errFound = errors.New("found")

// elsewhere tells whether a mount namespace besides ours has a mount of the file system with a number. It asks the kernel about
// namespaces, of which there are few, and not about each process. known is false where the kernel can't tell.
func elsewhere(major, minor uint32) (found, known bool) {
	err := otherNamespaces(func(ns mountNamespace) error { return ns.search(major, minor) })
	return errors.Is(err, errFound), err == nil || errors.Is(err, errFound)
}

// otherNamespaces visits all mount namespaces but ours: those that are newer and those that are older.
func otherNamespaces(visit func(ns mountNamespace) error) error {
	for _, direction := range []uintptr{nextNamespace, lastNamespace} {
		at, err := os.Open("/proc/self/ns/mnt")
		if err != nil {
			return err
		}
		for err == nil {
			ns := mountNamespace{size: uint32(unsafe.Sizeof(mountNamespace{}))}
			fd, errno := ask(unix.SYS_IOCTL, at.Fd(), direction, uintptr(unsafe.Pointer(&ns)), 0)
			_ = at.Close()
			if errno == unix.ENOENT {
				break // there is no other one
			}
			if errno != 0 {
				return errno
			}
			at = os.NewFile(fd, "namespace")
			if err = visit(ns); err != nil {
				_ = at.Close()
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// search returns errFound if the namespace has a mount of the file system with a number. One that ends meanwhile has none.
func (ns mountNamespace) search(major, minor uint32) error {
	var ids [256]uint64
	for last := uint64(0); ; {
		list := mountRequest{size: uint32(unsafe.Sizeof(mountRequest{})), mount: fromRoot, param: last, namespace: ns.id}
		n, errno := ask(unix.SYS_LISTMOUNT, uintptr(unsafe.Pointer(&list)), uintptr(unsafe.Pointer(&ids)), uintptr(len(ids)), 0)
		if errno == unix.ENOENT {
			return nil
		}
		if errno != 0 {
			return errno
		}
		for _, id := range ids[:n] {
			switch is, errno := ns.number(id, major, minor); {
			case errno != 0 && errno != unix.ENOENT:
				return errno
			case errno == 0 && is:
				return errFound
			}
		}
		if int(n) < len(ids) {
			return nil
		}
		last = ids[n-1]
	}
}

// number tells whether a mount is of the file system with a number.
func (ns mountNamespace) number(mount uint64, major, minor uint32) (bool, unix.Errno) {
	var answer [512]byte // struct statmount
	about := mountRequest{size: uint32(unsafe.Sizeof(mountRequest{})), mount: mount, param: askNumber, namespace: ns.id}
	_, errno := ask(unix.SYS_STATMOUNT, uintptr(unsafe.Pointer(&about)), uintptr(unsafe.Pointer(&answer)), uintptr(len(answer)), 0)
	return binary.NativeEndian.Uint32(answer[16:]) == major && binary.NativeEndian.Uint32(answer[20:]) == minor, errno
}

// ask makes a system call that changes nothing. What its arguments point to must not move meanwhile, as it could on a stack.
//
//go:uintptrescapes
func ask(call, a, b, c, d uintptr) (uintptr, unix.Errno) {
	n, _, errno := unix.Syscall6(call, a, b, c, d, 0, 0)
	return n, errno
}
