// Package mount makes and removes mounts with the kernel's descriptor based interface (fsopen(2), open_tree(2),
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
	"github.com/kraken-hpc/imageapi/internal/sys/fsmount"
	"github.com/kraken-hpc/imageapi/internal/sys/kmsg"
	"github.com/kraken-hpc/imageapi/internal/sys/module"
)

// FS describes a file system and a mount of it.
type FS struct {
	Type   string
	Source string  // a device, or what the file system takes for one: "host:/path"
	Device bool    // Source is a block device: what the kernel logs about it goes into the error
	Layers []Layer // set after the source
	Params []Param // set in this order
	Attr   Attr

	// Speaker is the word with which the kernel begins its log lines about such file systems, or empty.
	Speaker string
}

// Layer is a directory that the file system gets as a descriptor.
type Layer struct {
	Key, Path string
	Shown     string // in messages, instead of Path
}

// Options returns all that fsconfig(2) sets.
func (fs FS) Options() []fsmount.Option {
	all := []fsmount.Option{{Key: "source", Value: fs.Source, Sort: fsmount.String}}
	for _, l := range fs.Layers {
		all = append(all, fsmount.Option{Key: l.Key, Value: l.Path, Sort: fsmount.Directory})
	}
	for _, p := range fs.Params {
		sort := fsmount.Flag
		if p.HasValue {
			sort = fsmount.String
		}
		all = append(all, fsmount.Option{Key: p.Key, Value: p.Value, Sort: sort})
	}
	return all
}

// Make makes a file system and returns a detached mount of it: nobody else can see it, and closing the descriptor undoes it. A type that the
// kernel does not have, and cannot load, is errs.Unsupported.
func Make(g failpoint.Hook, fs FS) (*os.File, error) {
	log := fs.Listen()
	defer log.Close()
	fd := -1
	err := g.Do("mount make", func() error {
		var refusal *fsmount.Refusal
		if fd, refusal = fsmount.Make(fs.Type, int(fs.Attr), fs.Options()); refusal != nil {
			return refusal
		}
		return nil
	})
	if refusal, ok := errors.AsType[*fsmount.Refusal](err); ok {
		return nil, fs.Refused(refusal, log)
	}
	if err != nil {
		return nil, fs.Refused(&fsmount.Refusal{Err: err}, log)
	}
	return os.NewFile(uintptr(fd), fs.Type), nil
}

// Tmpfs makes a file system in memory that ends with its mount. Its options have the form key=value.
func Tmpfs(g failpoint.Hook, label string, options ...string) (*os.File, error) {
	fs := FS{Type: "tmpfs", Source: label, Attr: OnNode | NoExec}
	for _, o := range options {
		key, value, _ := strings.Cut(o, "=")
		fs.Params = append(fs.Params, Param{Key: key, Value: value, HasValue: true})
	}
	return Make(g, fs)
}

// Listen listens to the kernel's log, where many file systems tell what they dislike. It may be nil.
func (fs FS) Listen() *kmsg.Log {
	speaker := fs.Speaker
	if fs.Device {
		speaker = deviceName(fs.Source)
	}
	if speaker == "" {
		return nil
	}
	return kmsg.Listen(kmsg.About(speaker))
}

// Refused makes an error of a refusal. The words of the kernel are those in the context of the file system, else those in its log.
func (fs FS) Refused(r *fsmount.Refusal, log *kmsg.Log) error {
	if r.Step == "fsopen" && errors.Is(r.Err, unix.ENODEV) {
		return Lacks(fs.Type, r.Err)
	}
	e := &Error{Op: "mount", Type: fs.Type, Source: fs.Source, Flags: fs.Attr, Option: r.Option, Err: r.Err}
	for _, l := range fs.Layers {
		if l.Shown != "" && r.Option == l.Key+"="+l.Path {
			e.Option = l.Key + "=" + l.Shown
		}
	}
	for _, w := range r.Words {
		e.Words = append(e.Words, Plain(w))
	}
	if len(e.Words) == 0 {
		e.Words = log.Lines()
	}
	return Refused(e)
}

// Find fails as Make would if the kernel neither has a type nor could load it. It loads nothing.
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

// deviceName returns what the kernel calls the device at path: dm-0, not mapper/data.
func deviceName(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	return filepath.Base(path)
}

// Plain takes the class ("e ", "w " or "i ") from a message of a file system's context.
func Plain(message string) string {
	message = strings.TrimSpace(message)
	if len(message) > 2 && message[1] == ' ' {
		return message[2:]
	}
	return message
}
