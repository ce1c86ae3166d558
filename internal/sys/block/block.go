// Package block knows block devices: which one a descriptor is, where its node is, and its partitions.
package block

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
)

// Info is what the kernel says about a block device.
type Info struct {
	Number   uint64 // st_rdev
	Name     string // the kernel's: "loop3"
	Sequence uint64 // the disk's sequence number; no two disks of one boot share one. 0 before Linux 5.15
	ReadOnly bool
	Size     int64 // in bytes
	Sector   int   // logical sector size in bytes
}

// ErrNotBlock says that a descriptor is not one of a block device.
var ErrNotBlock = errs.New(errs.Invalid, "not a block device")

// Number returns the st_rdev of the block device that f is, which may be opened with O_PATH, or ErrNotBlock.
func Number(f *os.File) (uint64, error) {
	var st unix.Stat_t
	err := control(f, func(fd int) error { return unix.Fstat(fd, &st) })
	if err != nil {
		return 0, fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, ErrNotBlock
	}
	return st.Rdev, nil
}

// Stat describes the block device that f is. O_PATH is not enough for f.
func Stat(f *os.File) (Info, error) {
	number, err := Number(f)
	if err != nil {
		return Info{}, err
	}
	info := Info{Number: number, Name: Name(number)}
	err = control(f, func(fd int) error {
		var size uint64
		if err := ioctl(fd, unix.BLKGETSIZE64, unsafe.Pointer(&size)); err != nil {
			return err
		}
		readOnly, err := unix.IoctlGetUint32(fd, unix.BLKROGET)
		if err != nil {
			return err
		}
		sector, err := unix.IoctlGetUint32(fd, unix.BLKSSZGET)
		if err != nil {
			return err
		}
		// An older kernel does not know the request: the sequence stays 0.
		_ = ioctl(fd, getDiskSequence, unsafe.Pointer(&info.Sequence))
		info.Size, info.ReadOnly, info.Sector = int64(size), readOnly != 0, int(sector)
		return nil
	})
	if err != nil {
		return Info{}, fmt.Errorf("ask for size and state of %s: %w", f.Name(), err)
	}
	return info, nil
}

// Sysfs returns the directory of a device in /sys.
func Sysfs(number uint64) string {
	return fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(number), unix.Minor(number))
}

// Name returns the kernel's name of a device, or "" if there is none with this number.
func Name(number uint64) string {
	dir, err := os.Readlink(Sysfs(number))
	if err != nil {
		return ""
	}
	return filepath.Base(dir)
}

// Nodes makes device nodes where nobody else does.
type Nodes struct {
	Failpoint failpoint.Hook
	Dir       string // where nodes are; default /dev
}

// nodeTries bounds how often a node may come and go while it is looked at.
const nodeTries = 100

// ownNode marks a node as made here: by its sticky bit, which means nothing to the kernel. So whoever uses the device last can remove
// the node, also if another one has made it.
const ownNode = unix.S_ISVTX

// Ensure returns the path of the device's node. devtmpfs has it by the time a device exists. On a node with a static
// /dev it is made here: made tells so, and it is then the caller's to remove. Several may do so at once, in other processes too.
func (n Nodes) Ensure(number uint64) (path string, made bool, err error) {
	name := Name(number)
	if name == "" {
		return "", false, fmt.Errorf("find block device %d:%d: %w", unix.Major(number), unix.Minor(number), unix.ENXIO)
	}
	// In sysfs a slash in a device's name is written as "!".
	path = filepath.Join(n.dir(), strings.ReplaceAll(name, "!", "/"))
	for range nodeTries {
		var st unix.Stat_t
		switch err := unix.Stat(path, &st); {
		case err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == number:
			return path, st.Mode&ownNode != 0, nil
		case err == nil:
			return "", false, errs.New(errs.Conflict, "use %s: not the node of block device %d:%d; remove it", path, unix.Major(number), unix.Minor(number))
		case err != unix.ENOENT:
			return "", false, fmt.Errorf("stat %s: %w", path, err)
		}
		err = n.Failpoint.Do("node make", func() error { return unix.Mknod(path, unix.S_IFBLK|ownNode|0o600, int(number)) })
		if err != nil && !errors.Is(err, unix.EEXIST) { // else another one was faster
			break
		}
	}
	if err != nil {
		return "", false, fmt.Errorf("make device node %s (mount devtmpfs on /dev): %w", path, err)
	}
	return "", false, fmt.Errorf("make device node %s: others make and remove it all the time", path)
}

// Remove removes a node that Ensure made, after its device is gone. One that is gone or means another device by now is left alone.
func (n Nodes) Remove(path string, number uint64) error {
	return n.RemoveUnless(path, number, func() bool { return Name(number) != "" })
}

// RemoveUnless is Remove for a device that may be there still, or again: in use reports whether another one has it now. Should it come
// into use in the meantime the node comes back.
func (n Nodes) RemoveUnless(path string, number uint64, inUse func() bool) error {
	for range nodeTries {
		var st unix.Stat_t
		if inUse() || unix.Lstat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK || st.Rdev != number {
			return nil
		}
		err := n.Failpoint.Do("node remove", func() error { return os.Remove(path) })
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if !inUse() {
			return nil
		}
		if _, _, err := n.Ensure(number); err != nil {
			return err
		}
	}
	return nil
}

func (n Nodes) dir() string {
	if n.Dir == "" {
		return "/dev"
	}
	return n.Dir
}

// getDiskSequence is BLKGETDISKSEQ (Linux 5.15), _IOR(0x12, 128, __u64).
const getDiskSequence = 0x80081280

func ioctl(fd int, request uint, arg unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(arg))
	if errno != 0 {
		return errno
	}
	return nil
}

// control calls act with f's descriptor, which can't be closed meanwhile and stays in the mode it is in.
func control(f *os.File, act func(fd int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := conn.Control(func(fd uintptr) { inner = act(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// Attribute reads a number from sysfs. The directory may be a symbolic link with a ".." after it.
func Attribute(dir, name string) (int64, error) {
	text, err := os.ReadFile(dir + "/" + name)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
}
