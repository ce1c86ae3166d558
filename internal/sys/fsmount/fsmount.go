// Package fsmount makes file systems by the kernel's descriptors (fsopen(2), fsconfig(2), fsmount(2)). The programs beside containers are
// built from it, so it stays free of package fmt.
package fsmount

import (
	"golang.org/x/sys/unix"
)

// An Option is one of a file system.
type Option struct {
	Key, Value string
	Sort       Sort
}

// Sort is the form in which an Option goes to the kernel.
type Sort string

// The sorts of options: fsconfig(2).
const (
	Flag      Sort = "flag"
	String    Sort = "string"
	Directory Sort = "directory" // Value is the path of a directory, which the kernel gets as a descriptor
)

// String writes the option as it was given.
func (o Option) String() string {
	if o.Sort == Flag {
		return o.Key
	}
	return o.Key + "=" + o.Value
}

// Refusal is an error with the words of the kernel.
type Refusal struct {
	Step   string // the system call
	Option string // that was refused, or empty
	Err    error
	Words  []string
}

// Error implements error.
func (r *Refusal) Error() string { return r.Step + " " + r.Option + ": " + r.Err.Error() }

// Unwrap returns the errno.
func (r *Refusal) Unwrap() error { return r.Err }

// Accepts reports whether the kernel takes an option, as far as that is known before the file system is made. A file system that the kernel
// lacks accepts all: its mount tells that.
func Accepts(fsType string, o Option) bool {
	fs, err := unix.Fsopen(fsType, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return true
	}
	defer unix.Close(fs)
	return set(fs, o) == nil
}

// Make makes a file system and returns a mount of it that is attached nowhere. attr are MOUNT_ATTR_*.
func Make(fsType string, attr int, options []Option) (int, *Refusal) {
	fs, err := unix.Fsopen(fsType, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, &Refusal{Step: "fsopen", Err: err}
	}
	defer unix.Close(fs)
	for _, o := range options {
		if err := set(fs, o); err != nil {
			return -1, &Refusal{Step: "fsconfig", Option: o.String(), Err: err, Words: words(fs)}
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, &Refusal{Step: "create", Err: err, Words: words(fs)}
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return -1, &Refusal{Step: "fsmount", Err: err, Words: words(fs)}
	}
	return mount, nil
}

func set(fs int, o Option) error {
	switch o.Sort {
	case Flag:
		return unix.FsconfigSetFlag(fs, o.Key)
	case String:
		return unix.FsconfigSetString(fs, o.Key, o.Value)
	case Directory:
		dir, err := unix.Open(o.Value, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(dir)
		return unix.FsconfigSetFd(fs, o.Key, dir)
	default:
		return unix.EPROTO
	}
}

// words returns the messages in the context of a file system: one a read, and an error after the last.
func words(fs int) (said []string) {
	buf := make([]byte, 4096)
	for {
		n, err := unix.Read(fs, buf)
		if err != nil || n <= 0 {
			return said
		}
		said = append(said, string(buf[:n]))
	}
}
