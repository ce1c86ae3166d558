// Package mount makes and takes away mounts with the kernel's descriptor based interface (fsopen(2), open_tree(2),
// mount_setattr(2), move_mount(2); Linux 5.12): a mount is complete before anyone can see it, and closing its
// descriptor undoes it. Errors carry the kernel's own words.
package mount

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/sys/kmsg"
	"github.com/kraken-hpc/imageapi/internal/sys/module"
)

// FS is a file system that is being configured (fsopen(2)). It is not safe for concurrent use.
type FS struct {
	failpoint failpoint.Hook
	fd        int
	fsType    string
	source    string
	log       *kmsg.Log
}

// New begins a file system of a type. A type that the kernel does not have, and can't load, is errs.Unsupported.
func New(g failpoint.Hook, fsType string) (*FS, error) {
	f := &FS{failpoint: g, fd: -1, fsType: fsType}
	err := g.Do("mount open", func() (err error) {
		f.fd, err = unix.Fsopen(fsType, unix.FSOPEN_CLOEXEC)
		return err
	})
	if errors.Is(err, unix.ENODEV) {
		return nil, Lacks(fsType, err)
	}
	if err != nil {
		return nil, f.fail("", err)
	}
	return f, nil
}

// Find fails as New would if the kernel neither has a type nor could load it. It loads nothing.
func Find(ctx context.Context, g failpoint.Hook, fsType string) error {
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(known)) {
		if slices.Contains(strings.Fields(line), fsType) {
			return nil
		}
	}
	if err := module.Find(ctx, g, "fs-"+fsType); err != nil { // as the kernel asks for it
		return Lacks(fsType, unix.ENODEV)
	}
	return nil
}

// Lacks is the error for a file system that the kernel does not have.
func Lacks(fsType string, err error) error {
	return errs.New(errs.Unsupported, "mount %s: the kernel has no such file system: load its module (modprobe %s) or enable it in the kernel's configuration: %w", fsType, fsType, err)
}

// Close lets go of the configuration; a mount made from it stays.
func (f *FS) Close() {
	f.log.Close()
	_ = unix.Close(f.fd)
}

// Device sets the block device that the file system is on. Many file systems tell what they dislike only in the
// kernel's log: from here on its lines about this device are collected for the error.
func (f *FS) Device(path string) error {
	f.source = path
	f.log = kmsg.Listen(kmsg.About(deviceName(path)))
	return f.Set(Param{Key: "source", Value: path, HasValue: true})
}

// deviceName returns what the kernel calls the device at path: dm-0, not mapper/data.
func deviceName(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	return filepath.Base(path)
}

// Label sets what stands as the source in the mount table, for a file system without a device. speaker is the word
// with which the kernel begins its log lines about such file systems, as in "overlayfs: …"; or empty.
func (f *FS) Label(name, speaker string) error {
	if speaker != "" {
		f.log = kmsg.Listen(kmsg.About(speaker))
	}
	return f.Set(Param{Key: "source", Value: name, HasValue: true})
}

// Set passes an option on. The error names it.
func (f *FS) Set(p Param) error {
	err := f.failpoint.Do("mount option", func() error {
		if p.HasValue {
			return unix.FsconfigSetString(f.fd, p.Key, p.Value)
		}
		return unix.FsconfigSetFlag(f.fd, p.Key)
	})
	if err != nil {
		return f.fail(p.String(), err)
	}
	return nil
}

// SetFile passes a descriptor as the value of an option.
func (f *FS) SetFile(key string, file *os.File) error {
	err := f.failpoint.Do("mount option", func() error { return unix.FsconfigSetFd(f.fd, key, int(file.Fd())) })
	if err != nil {
		return f.fail(key+"="+file.Name(), err)
	}
	return nil
}

// Mount makes the file system and returns a detached mount of it: nobody else can see it, and closing the
// descriptor undoes it.
func (f *FS) Mount(attr Attr) (*os.File, error) {
	if err := f.failpoint.Do("mount create", func() error { return unix.FsconfigCreate(f.fd) }); err != nil {
		return nil, f.failAttr(attr, err)
	}
	fd := -1
	err := f.failpoint.Do("mount make", func() (err error) {
		fd, err = unix.Fsmount(f.fd, unix.FSMOUNT_CLOEXEC, int(attr))
		return err
	})
	if err != nil {
		return nil, f.failAttr(attr, err)
	}
	return os.NewFile(uintptr(fd), f.fsType), nil
}

func (f *FS) fail(option string, err error) error {
	return Refused(&Error{Op: "mount", Type: f.fsType, Source: f.source, Option: option, Words: f.words(), Err: err})
}

func (f *FS) failAttr(attr Attr, err error) error {
	return Refused(&Error{Op: "mount", Type: f.fsType, Source: f.source, Flags: attr, Words: f.words(), Err: err})
}

// words returns what the kernel said about this file system: in its context or else in the log.
func (f *FS) words() []string {
	var words []string
	buf := make([]byte, 4096)
	for f.fd >= 0 {
		n, err := unix.Read(f.fd, buf) // one message a call, ENODATA when there is none left
		if err != nil || n <= 0 {
			break
		}
		words = append(words, Plain(string(buf[:n])))
	}
	if len(words) > 0 {
		return words
	}
	return f.log.Lines()
}

// Plain takes the class ("e ", "w " or "i ") from a message of a file system's context.
func Plain(message string) string {
	message = strings.TrimSpace(message)
	if len(message) > 2 && message[1] == ' ' {
		return message[2:]
	}
	return message
}
