// Package dm makes devices of the kernel's device mapper: block devices of which each read or write is one to other devices.
//
// It speaks to /dev/mapper/control itself, with no other program, and needs no udev. A device is known by an id of the caller's,
// which is both its name and its UUID, so that whoever comes later finds it again.
package dm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/oneshot"
	"github.com/kraken-hpc/imageapi/internal/sys/block"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/sys/holders"
	"github.com/kraken-hpc/imageapi/internal/sys/kmsg"
	"github.com/kraken-hpc/imageapi/internal/sys/module"
)

// Mapper makes devices. What may wait for a device below happens in a helper.
type Mapper struct {
	Failpoint failpoint.Hook
	Helper    *oneshot.Runner
}

// Target says what a whole device is.
type Target struct {
	Type   string // as in Documentation/admin-guide/device-mapper: "verity"
	Size   int64  // of the device, in bytes, a multiple of 512
	Params string // what comes after the type in a line of a table
}

// Status is what the kernel says of a device.
type Status struct {
	Number uint64 // st_rdev
	Type   string // of its first target; empty if it has none, since it is half made
	Table  string // that target's parameters
	Text   string // what that target says of itself
}

// ErrNone says that there is no device with an id.
var ErrNone = errors.New("there is no such device")

const (
	controlNode = "/dev/mapper/control"
	sectorSize  = 512
	// headSize is the size of a request without what follows the head, and roomSize that of a request and its longest answer.
	headSize = int(unsafe.Sizeof(unix.DmIoctl{}))
	specSize = int(unsafe.Sizeof(unix.DmTargetSpec{}))
	roomSize = 16 << 10
)

// Make makes a read-only device. What fails may have made a part of it: Remove takes that away.
func (m Mapper) Make(ctx context.Context, id string, target Target) error {
	control, err := m.load(ctx)
	if err != nil {
		return err
	}
	defer control.Close()
	if err := m.create(control, id); err != nil {
		return fmt.Errorf("make device %s: %w", id, err)
	}
	said := kmsg.Listen(kmsg.About("device-mapper"))
	defer said.Close()
	if err := m.fill(ctx, control, id, target); err != nil {
		return refused(id, target, err, strings.Join(said.Lines(), "; "))
	}
	if err := m.resume(ctx, control, id); err != nil {
		return fmt.Errorf("begin to use device %s: %w", id, err)
	}
	return nil
}

// refused is the error of a table that was not taken. words is what the kernel has logged.
func refused(id string, target Target, cause error, words string) error {
	switch {
	case !errors.Is(cause, unix.EINVAL) && !errors.Is(cause, unix.ENOENT):
		return fmt.Errorf("make device %s: %w", id, cause)
	case strings.Contains(words, "unknown target type"):
		return errs.New(errs.Unsupported, "make device %s: the kernel has no dm-%s, or cannot load it (modprobe dm-%s)", id, target.Type, target.Type)
	case words == "":
		return errs.New(errs.Invalid, "make device %s: %w", id, cause)
	default:
		return errs.New(errs.Invalid, "make device %s: %w; the kernel says: %s", id, cause, words)
	}
}

// Find fails as Make would if the node has no device mapper. It loads nothing.
func (m Mapper) Find(ctx context.Context) error {
	if misc, err := os.ReadFile("/proc/misc"); err == nil && bytes.Contains(misc, []byte(" device-mapper\n")) {
		return nil
	}
	return module.Find(ctx, m.Failpoint, moduleName)
}

const moduleName = "dm_mod"

// openControl opens the control node. The error is fs.ErrNotExist also for a node without a device mapper, which udev may have made.
func openControl() (*os.File, error) {
	control, err := os.Open(controlNode)
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		return nil, fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	return control, err
}

// load opens the control node and loads the device mapper's module if there is none.
func (m Mapper) load(ctx context.Context) (*os.File, error) {
	control, err := openControl()
	if !errors.Is(err, fs.ErrNotExist) {
		return control, err
	}
	if err := module.Load(ctx, m.Failpoint, moduleName); err != nil {
		return nil, err
	}
	control, err = openControl()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.New(errs.Unsupported, "use the device mapper: no %s; mount devtmpfs on /dev", controlNode)
	}
	return control, err
}

// create makes a device without a table. It asks nobody, so it happens here.
func (m Mapper) create(control *os.File, id string) error {
	request := newRequest(id, 0)
	copy(request.head().Name[:], id)
	return m.Failpoint.Do("mapper create", func() error { return ioctl(control, unix.DM_DEV_CREATE, request) })
}

// fill gives a device its table, with which the devices below are opened.
func (m Mapper) fill(ctx context.Context, control *os.File, id string, target Target) error {
	request := newRequest(id, unix.DM_READONLY_FLAG)
	spec := unix.DmTargetSpec{Length: uint64(target.Size / sectorSize)}
	copy(spec.Target_type[:], target.Type)
	request.head().Target_count = 1
	copy(request[headSize:], unsafe.Slice((*byte)(unsafe.Pointer(&spec)), specSize))
	if n := copy(request[headSize+specSize:len(request)-1], target.Params); n < len(target.Params) {
		return errors.New("its table is too long")
	}
	return m.Failpoint.Do("mapper load", func() error { return m.help(ctx, control, unix.DM_TABLE_LOAD, request) })
}

// resume makes a table that was loaded the one in use.
func (m Mapper) resume(ctx context.Context, control *os.File, id string) error {
	return m.Failpoint.Do("mapper resume", func() error { return m.help(ctx, control, unix.DM_DEV_SUSPEND, newRequest(id, 0)) })
}

func (m Mapper) help(ctx context.Context, control *os.File, command uint, r request) error {
	return m.Helper.Ioctl(ctx, control, command, r)
}

// Remove removes a device. That none exists is no error. A device in use is an errs.Busy that names the users.
func (m Mapper) Remove(ctx context.Context, id string) error {
	err := holders.WhenFree(ctx, func() error {
		err := m.remove(ctx, id)
		if errors.Is(err, unix.EBUSY) {
			err = fmt.Errorf("%w: %w", holders.ErrPassing, err)
		}
		return err
	})
	if errors.Is(err, holders.ErrPassing) {
		return m.busy(id, err)
	}
	return err
}

// remove is one attempt.
func (m Mapper) remove(ctx context.Context, id string) error {
	control, err := openControl()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // and so no device
	}
	if err != nil {
		return err
	}
	defer control.Close()
	err = newRequest(id, 0).ask(control, unix.DM_DEV_STATUS)
	if err == nil {
		err = m.Failpoint.Do("mapper remove", func() error { return m.help(ctx, control, unix.DM_DEV_REMOVE, newRequest(id, 0)) })
	}
	if errors.Is(err, unix.ENXIO) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove device %s: %w", id, err)
	}
	return nil
}

// busy says who has a device open.
func (m Mapper) busy(id string, cause error) error {
	status, err := m.Status(id)
	if err != nil {
		return errs.New(errs.Conflict, "%w", cause)
	}
	return holders.InUse("remove", "/dev/"+block.Name(status.Number), holders.ErrPassing, holders.OfDevice(status.Number))
}

// Status tells what the kernel knows of a device, or ErrNone. It waits for nothing.
func (m Mapper) Status(id string) (Status, error) {
	control, err := openControl()
	if errors.Is(err, fs.ErrNotExist) {
		return Status{}, ErrNone
	}
	if err != nil {
		return Status{}, err
	}
	defer control.Close()
	says, params := newRequest(id, unix.DM_NOFLUSH_FLAG), newRequest(id, unix.DM_NOFLUSH_FLAG|unix.DM_STATUS_TABLE_FLAG)
	for _, r := range []request{says, params} {
		err := r.ask(control, unix.DM_TABLE_STATUS)
		if errors.Is(err, unix.ENXIO) {
			return Status{}, ErrNone
		}
		if err != nil {
			return Status{}, fmt.Errorf("ask for device %s: %w", id, err)
		}
	}
	status := Status{Number: says.head().Dev} // it is encoded as an st_rdev is
	status.Type, status.Text = says.target()
	_, status.Table = params.target()
	return status, nil
}

// A request is a buffer for a request, with its head, and for the answer.
type request []byte

func newRequest(id string, flags uint32) request { return sizedRequest(roomSize, id, flags) }

func sizedRequest(size int, id string, flags uint32) request {
	r := make(request, size)
	h := r.head()
	h.Version = [3]uint32{4, 0, 0} // the least that the kernel has to understand
	h.Data_size, h.Data_start, h.Flags = uint32(len(r)), uint32(headSize), flags
	copy(h.Uuid[:], id)
	return r
}

// head is the head of the request: a slice that was just made is aligned for it.
func (r request) head() *unix.DmIoctl { return (*unix.DmIoctl)(unsafe.Pointer(&r[0])) }

// ask sends a request that changes nothing; the answer takes its place.
func (r request) ask(control *os.File, command uint) error { return ioctl(control, command, r) }

func ioctl(control *os.File, command uint, r request) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), uintptr(command), uintptr(unsafe.Pointer(&r[0]))); errno != 0 {
		return errno
	}
	return nil
}

// target returns type and text of the first target in an answer.
func (r request) target() (kind, text string) {
	start := int(r.head().Data_start)
	if r.head().Target_count == 0 || start+specSize > len(r) {
		return "", ""
	}
	return untilNUL(r[start+int(unsafe.Offsetof(unix.DmTargetSpec{}.Target_type)):]), untilNUL(r[start+specSize:])
}

func untilNUL(b []byte) string {
	text, _, _ := bytes.Cut(b, []byte{0})
	return string(text)
}
