// Package oneshot does one act that may hang in a process that can be killed: acts on network file systems and on devices whose server may be gone.
//
// A thread that waits in the kernel for a server cannot be taken back, and a daemon that lends its own to enough dead servers stands
// still. So each such act gets its own process, a helper (imageapi-init), which is killed after its time. While it runs no thread waits
// for it. Where the kernel lets even a killed process wait, the error says so and names the reason ([Stuck]); the process is reaped
// whenever it ends. Package wire draws the messages, package act is the other side.
package oneshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/sys/fsmount"
	"github.com/kraken-hpc/imageapi/internal/sys/layer"
	"github.com/kraken-hpc/imageapi/internal/sys/mount"
	"github.com/kraken-hpc/imageapi/internal/sys/rootpath"
)

// Runner starts helpers. It is safe for concurrent use.
//
// All its acts happen in the daemon's mount namespace and honour their context: a little before its deadline, so that
// there is still time for an answer, or when it is cancelled the process is killed. The error is then an errs.Deadline
// that says where the process waited, and wraps the context's cause. If the process did not end within a moment, the
// error has a *[Stuck] in its chain; what becomes of the act is then known only when it ends.
//
// A helper ends with the daemon, as far as the kernel lets it, and begins nothing once that is gone.
type Runner struct {
	program   *os.File
	failpoint failpoint.Hook
	about     string
}

// New returns a Runner for imageapi-init, in sealed memory (spawn.Copy), which stays the caller's.
func New(p *os.File, g failpoint.Hook) *Runner { return &Runner{program: p, failpoint: g} }

func message(kind wire.Kind, fields ...string) wire.Message {
	return wire.Message{Kind: kind, Fields: fields}
}

// Mount makes a file system and returns a detached mount of it (see package mount): nobody else can see it. Where its
// server may be gone it is undone with [Runner.Discard], since closing the last descriptor of it can hang.
//
// The error is that of package mount, with the kernel's words and the option that it refused.
func (r *Runner) Mount(ctx context.Context, fs mount.FS) (*os.File, error) {
	log := fs.Listen()
	defer log.Close()
	request := wire.FS{Type: fs.Type, Attr: uint64(fs.Attr), Options: fs.Options()}
	file, failure, err := r.file(ctx, act{name: "helper mount", what: fmt.Sprintf("mount %s %s", fs.Type, fs.Source), request: request.Message()})
	if failure != nil {
		err = fs.Refused(&fsmount.Refusal{Step: failure.Act, Option: failure.Path, Err: failure.Errno, Words: failure.Words}, log)
	}
	return file, err
}

// Classic is mount.Classic for an FS, but for its Layers; its Params are in data.
func (r *Runner) Classic(ctx context.Context, fs mount.FS, dir, target, data string) error {
	log := fs.Listen()
	defer log.Close()
	request := message(wire.DoClassic, fs.Type, fs.Source, target, strconv.FormatUint(uint64(mount.ClassicFlags(fs.Attr)), 10), data, dir)
	_, failure, err := r.do(ctx, act{name: "helper mount", what: fmt.Sprintf("mount %s at %s", fs.Type, target), request: request})
	if failure != nil {
		return mount.Refused(&mount.Error{Op: "mount", Type: fs.Type, Target: target, Flags: fs.Attr, Words: log.Lines(), Err: failure.Errno})
	}
	return err
}

// Unmount unmounts what is mounted at path, a mountpoint in a directory of ours, with the flags of umount2(2). The
// kernel writes back what is dirty only once the mount is gone from the mount table: to be able to turn back, call Sync
// before. The errno can be had with errors.Is.
func (r *Runner) Unmount(ctx context.Context, path string, flags int) error {
	what := "unmount " + path
	_, failure, err := r.do(ctx, act{name: "helper unmount", what: what, request: message(wire.DoUnmount, path, strconv.Itoa(flags))})
	if failure != nil {
		return mount.Refused(&mount.Error{Op: "unmount", Source: path, Err: failure.Errno})
	}
	return err
}

// Sync makes the file system at path, a mountpoint in a directory of ours, write back all that it has in memory. While it
// runs the mount is busy.
func (r *Runner) Sync(ctx context.Context, path string) error {
	return r.only(ctx, act{name: "helper sync", what: "sync " + path, request: message(wire.DoSync, path)})
}

// Flush is Sync for a file system whose server is gone: Sync asks it about the directory first. Errors of writing are not
// told. It needs a file system that writes back when it is reconfigured (fspick(2)), as NFS does.
func (r *Runner) Flush(ctx context.Context, path string) error {
	return r.only(ctx, act{name: "helper flush", what: "flush " + path, request: message(wire.DoFlush, path)})
}

// Revive makes the file system mounted at path writable again after somebody has remounted it read-only. The kernel refuses that for one
// that it has made read-only itself, after errors.
func (r *Runner) Revive(ctx context.Context, path string) error {
	return r.only(ctx, act{name: "helper revive", what: "remount " + path + " for writing", request: message(wire.DoRevive, path)})
}

// Open is rootpath.Open.
func (r *Runner) Open(ctx context.Context, root, unsafePath string, flags int) (*os.File, error) {
	what := fmt.Sprintf("open %q inside %s", unsafePath, root)
	if strings.ContainsRune(unsafePath, 0) {
		return nil, rootpath.Classify(root, unsafePath, unix.EINVAL)
	}
	request := message(wire.DoOpen, root, unsafePath, strconv.Itoa(rootpath.Flags(flags)))
	file, failure, err := r.file(ctx, act{name: "helper open", what: what, request: request, result: unsafePath})
	if failure != nil && failure.Act == "openat2" {
		err = rootpath.Classify(root, unsafePath, failure.Errno)
	}
	return file, err
}

// Layer is layer.Prepare. What it says is in the error as a *layer.Error.
func (r *Runner) Layer(ctx context.Context, root, unsafePath string, look layer.Look) (*os.File, error) {
	what := fmt.Sprintf("prepare %q inside %s for an overlay", unsafePath, root)
	number := func(n uint32) string { return strconv.FormatUint(uint64(n), 10) }
	request := message(wire.DoLayer, root, unsafePath, number(look.UID), number(look.GID), number(look.Mode))
	file, failure, err := r.file(ctx, act{name: "helper layer", what: what, request: request, result: unsafePath})
	if failure != nil {
		err = &layer.Error{Step: layer.Step(failure.Act), Name: failure.Path, Err: failure.Errno}
	}
	return file, err
}

// Reopen opens once more what a descriptor stands for, with flags of open(2); O_PATH is enough for file. The beginning of a
// file, 8 KiB, has been read afterwards and is in memory; and what was written to it before is saved: neither is waited for later. The errno can be had with errors.Is.
func (r *Runner) Reopen(ctx context.Context, file *os.File, flags int) (*os.File, error) {
	what := fmt.Sprintf("open %q", file.Name())
	inherited, err := again(file)
	if err != nil {
		return nil, err
	}
	a := act{name: "helper open", what: what, request: message(wire.DoReopen, strconv.Itoa(flags)), inherit: inherited, result: file.Name()}
	opened, _, err := r.file(ctx, a)
	return opened, err
}

// Read reads length bytes of a file at an offset; path is opened with flags of open(2). With O_DIRECT both have to be multiples of
// what the device reads at once. That there are fewer bytes is io.ErrUnexpectedEOF; the errno can be had with errors.Is.
func (r *Runner) Read(ctx context.Context, path string, flags int, offset, length int64) ([]byte, error) {
	what := fmt.Sprintf("read %d bytes of %s at %d", length, path, offset)
	request := message(wire.DoRead, path, strconv.Itoa(flags), strconv.FormatInt(offset, 10), strconv.FormatInt(length, 10))
	return r.memory(ctx, act{name: "helper read", what: what, request: request}, int(length))
}

// Ask sends SCSI commands that read, of 6 to 16 bytes, to the device at path, and returns their answers one after the other. Each is 4
// bytes, which are its status, sense key, additional sense code and qualifier, and the data, filled up with zeros to its length.
func (r *Runner) Ask(ctx context.Context, path string, commands [][]byte, lengths []int) ([]byte, error) {
	what := "ask " + path
	fields, total := []string{path}, 0
	for i, c := range commands {
		fields = append(fields, wire.Hex(c), strconv.Itoa(lengths[i]))
		total += wire.AskHead + lengths[i]
	}
	return r.memory(ctx, act{name: "helper ask", what: what, request: message(wire.DoAsk, fields...)}, total)
}

// memory is an act that returns a descriptor of memory with length bytes.
func (r *Runner) memory(ctx context.Context, a act, length int) ([]byte, error) {
	file, _, err := r.file(ctx, a)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data := make([]byte, length)
	if _, err := file.ReadAt(data, 0); err != nil {
		return nil, fmt.Errorf("%s: %w", a.what, io.ErrUnexpectedEOF)
	}
	return data, nil
}

// WriteFile writes data, which has no NUL, to a file that exists, in one call of write(2), as sysfs(5) wants it. The
// errno can be had with errors.Is; data is in no error.
func (r *Runner) WriteFile(ctx context.Context, path string, data []byte) error {
	return r.only(ctx, act{name: "helper write", what: "write " + path, request: message(wire.DoWrite, path, string(data))})
}

// Key is a key for the kernel: keyrings(7).
type Key struct {
	Type        string // such as "ceph"
	Description string // by which the kernel looks for it
	Payload     []byte
}

// WriteFileWithKey is WriteFile by a process that has a key in its process keyring. For this write the kernel finds it
// there (request_key(9)); nobody else can, and it ends with the process. It is in no error.
func (r *Runner) WriteFileWithKey(ctx context.Context, path string, data []byte, key Key) error {
	request := message(wire.DoKeyed, key.Type, key.Description, wire.Hex(key.Payload), path, string(data))
	return r.only(ctx, act{name: "helper write", what: "write " + path, request: request})
}

// Ioctl is ioctl(2) with an argument that the kernel only reads. The errno can be had with errors.Is.
func (r *Runner) Ioctl(ctx context.Context, file *os.File, request uint, argument []byte) error {
	inherited, err := again(file)
	if err != nil {
		return err
	}
	m := message(wire.DoIoctl, strconv.FormatUint(uint64(request), 10), wire.Hex(argument))
	return r.only(ctx, act{name: ioctlName(request), what: "set up " + file.Name(), request: m, inherit: inherited})
}

// ioctlName is the name of an ioctl as an act. One that only asks changes nothing.
func ioctlName(request uint) string {
	if request == unix.LOOP_GET_STATUS64 {
		return "helper ioctl look"
	}
	return "helper ioctl"
}

// again returns one more descriptor for an open file.
func again(file *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), file.Name()), nil
}

// Discard closes a descriptor where that can hang, as the last one of a detached mount. It is closed in this process
// whatever becomes of it there.
func (r *Runner) Discard(ctx context.Context, file *os.File) error {
	return r.only(ctx, act{name: "helper close", what: "close " + file.Name(), request: message(wire.DoClose), inherit: file})
}

// Stuck is a process that waits in the kernel though it was killed.
type Stuck struct {
	PID   int
	Where string // the kernel's function that it waits in, or empty
	ended chan struct{}
}

// Error names the process.
func (s *Stuck) Error() string {
	return fmt.Sprintf("the helper process (pid %d) was killed and has not ended%s", s.PID, in(s.Where))
}

// Done is closed when the process has ended: the act is over then, one way or the other.
func (s *Stuck) Done() <-chan struct{} { return s.ended }

// AsStuck returns the process that an act left behind, or nil.
func AsStuck(err error) *Stuck {
	s, _ := errors.AsType[*Stuck](err)
	return s
}

func in(where string) string {
	if where == "" {
		return ""
	}
	return ": waiting in " + where
}

// overdue is the error of an act whose process was killed.
func overdue(ctx context.Context, what, where string, stuck *Stuck) error {
	if stuck != nil {
		return errs.New(errs.Deadline, "%s: not done in time: %w", what, stuck)
	}
	return errs.New(errs.Deadline, "%s: not done in time%s: %w", what, in(where), context.Cause(ctx))
}
