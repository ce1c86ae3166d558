// Package loop attaches files to loop devices and detaches them: loop(4).
//
// A device lives until Detach, also without the process that attached it. Should that be killed before it knows which device it
// has got, another one finds it by its mark (Marked).
package loop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/block"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/sys/module"
)

// Loop is the way to loop devices. Its methods are safe for concurrent use.
type Loop struct {
	Failpoint failpoint.Hook
	Nodes     block.Nodes
	Helper    Ioctler // for files whose server may be gone; nil: no file has one
}

// Ioctler does ioctl(2) where it can hang, with an argument that is not read back. The kernel changes a loop device only when all
// requests to it have ended, and asks who has the file when it tells of one.
type Ioctler interface {
	Ioctl(ctx context.Context, file *os.File, request uint, argument []byte) error
}

// Options say how a file is attached.
type Options struct {
	ReadOnly bool // no write reaches the file; needed if the descriptor can't write
	Remote   bool // who has the file may not answer
	Buffered bool // through the page cache, also where the kernel believes that direct I/O works
	Sector   int  // logical sector size in bytes; default 512
	// Mark tells this device from all others: at most 63 bytes, which the kernel keeps in lo_file_name. losetup(8) reads the
	// file's path from sysfs.
	Mark string
}

// ID tells a loop device's one use from all others.
type ID struct {
	Number   uint64 `json:"number"`        // st_rdev
	Sequence uint64 `json:"seq,omitempty"` // as in block.Info; 0 before Linux 5.15
	Dev      uint64 `json:"dev"`           // st_dev and st_ino of the file behind it, as the loop driver says
	Inode    uint64 `json:"ino"`
	MadeNode bool   `json:"made_node,omitempty"` // whether its device node is ours to remove
}

// Device is a loop device, open. It is to be closed, or released.
type Device struct {
	ID
	Path string
	Info block.Info

	loop   *Loop
	file   *os.File
	remote bool
}

const (
	flagReadOnly  = unix.LO_FLAGS_READ_ONLY
	flagAutoclear = unix.LO_FLAGS_AUTOCLEAR // as losetup --detach sets it on a device that is in use
	flagPartscan  = unix.LO_FLAGS_PARTSCAN
	flagDirect    = unix.LO_FLAGS_DIRECT_IO
)

// tries bounds how often another one may take the free device that the kernel has just named to us.
const tries = 10000

// Attach attaches file, which is open for reading and, unless it is to be read-only, writing, to a free loop device.
// Reads and writes bypass the page cache (direct I/O) where the file's file system can, unless they are to be buffered; then the image is
// not in memory twice.
//
// The device is locked against udev (flock(2)) until it is closed.
func (l *Loop) Attach(ctx context.Context, file *os.File, o Options) (*Device, error) {
	for range tries {
		if err := ctx.Err(); err != nil {
			return nil, errs.New(errs.Deadline, "attach %s: no free loop device in time: %w", file.Name(), err)
		}
		d, err := l.free(ctx, o.Remote)
		if taken(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		err = l.configure(d.file, file, o)
		if err == nil {
			return l.complete(d)
		}
		l.close(d)
		if !taken(err) {
			return nil, err
		}
	}
	return nil, errs.New(errs.Conflict, "attach %s: other programs took %d free loop devices in a row", file.Name(), tries)
}

// taken reports whether another one took or removed a free device, or its node, in the meantime: the next one, please.
func taken(err error) bool {
	return errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) || errors.Is(err, errNodeGone)
}

var errNodeGone = errors.New("its node was removed")

// free opens a device that was free a moment ago.
func (l *Loop) free(ctx context.Context, remote bool) (*Device, error) {
	minor, err := l.freeMinor(ctx)
	if err != nil {
		return nil, err
	}
	const loopMajor = 7
	d := &Device{loop: l, remote: remote, ID: ID{Number: unix.Mkdev(loopMajor, uint32(minor))}}
	if d.Path, d.MadeNode, err = l.Nodes.Ensure(d.Number); err != nil {
		return nil, err
	}
	// A read-only loop device refuses writes by itself; LOOP_CONFIGURE needs a descriptor that can.
	d.file, err = os.OpenFile(d.Path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, errNodeGone
	}
	if err != nil {
		l.removeNode(d.ID, d.Path)
		return nil, fmt.Errorf("open loop device: %w", err)
	}
	return d, nil
}

func (l *Loop) freeMinor(ctx context.Context) (minor int, err error) {
	f, err := l.control(ctx)
	if err != nil {
		return 0, notFree(err)
	}
	defer f.Close()
	err = l.Failpoint.Do("loop get free", func() error {
		minor, err = unix.IoctlRetInt(int(f.Fd()), unix.LOOP_CTL_GET_FREE)
		return err
	})
	if err != nil {
		return 0, notFree(err)
	}
	return minor, nil
}

// Find fails as Attach would if the kernel has no loop devices. It loads nothing.
func (l *Loop) Find(ctx context.Context) error {
	if _, err := os.Stat(controlPath); errors.Is(err, unix.ENOENT) {
		if err := module.Find(ctx, l.Failpoint, "loop"); err != nil {
			return notFree(err)
		}
	}
	return nil
}

func notFree(err error) error { return fmt.Errorf("find a free loop device: %w", err) }

const controlPath = "/dev/loop-control"

// control opens the loop driver's control device. It comes with the module, so that opening it can't load that.
func (l *Loop) control(ctx context.Context) (*os.File, error) {
	f, err := os.OpenFile(controlPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		if err := module.Load(ctx, l.Failpoint, "loop"); err != nil {
			return nil, err
		}
		f, err = os.OpenFile(controlPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return nil, errs.New(errs.Unsupported, "%w", err)
	}
	return f, nil
}

func (l *Loop) configure(device, file *os.File, o Options) error {
	const sector512 = 512
	config := unix.LoopConfig{Fd: uint32(file.Fd()), Size: sector512}
	if o.Sector != 0 {
		config.Size = uint32(o.Sector)
	}
	if !o.Buffered {
		config.Info.Flags |= flagDirect
	}
	if o.ReadOnly {
		config.Info.Flags |= flagReadOnly
	}
	copy(config.Info.File_name[:len(config.Info.File_name)-1], o.Mark) // the kernel keeps the last byte for a NUL
	err := l.Failpoint.Do("loop configure", func() error { return unix.IoctlLoopConfigure(int(device.Fd()), &config) })
	switch {
	case errors.Is(err, unix.ENOTTY):
		return errs.New(errs.Unsupported, "attach %s: LOOP_CONFIGURE needs Linux 5.8: %w", file.Name(), err)
	case err != nil:
		return fmt.Errorf("attach %s to %s: %w", file.Name(), device.Name(), err)
	}
	return nil
}

// complete reads what a device has become, or gives it up.
func (l *Loop) complete(d *Device) (*Device, error) {
	// Who is faster, such as udev, is waited for in Detach.
	if err := l.lock(d.file); err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errors.Join(err, d.Release())
	}
	status, err := unix.IoctlLoopGetStatus64(int(d.file.Fd()))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("ask for the state of %s: %w", d.Path, err), d.Release())
	}
	d.Dev, d.Inode = status.Device, status.Inode
	if d.Info, err = block.Stat(d.file); err != nil {
		return nil, errors.Join(err, d.Release())
	}
	d.Sequence = d.Info.Sequence
	if err := l.sweep(d); err != nil {
		return nil, errors.Join(err, d.Release())
	}
	// Who wanted the device, too, may have removed the node. From now on it sees that the device is in use.
	if d.Path, d.MadeNode, err = l.Nodes.Ensure(d.Number); err != nil {
		return nil, errors.Join(err, d.Release())
	}
	return d, nil
}

// sweep deletes the partitions that an earlier user of the device left: the kernel forgets only those it found.
func (l *Loop) sweep(d *Device) error {
	parts, err := block.Partitions(d.Number)
	for _, p := range parts {
		err = errors.Join(err, block.DeletePartition(l.Failpoint, d.file, p.Index))
	}
	return err
}

// lock keeps udev from looking into the device: https://systemd.io/BLOCK_DEVICE_LOCKING.
func (l *Loop) lock(f *os.File) error {
	err := l.Failpoint.Do("loop lock", func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
	if err != nil {
		return fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return nil
}

// File is the device, open for reading and writing until Close or Release.
func (d *Device) File() *os.File { return d.file }

// Close lets go of the device, which stays attached. Nothing was written by way of it that closing could fail to save.
func (d *Device) Close() { _ = d.file.Close() }

// Scan makes the kernel read the partition table, if it was built to. It finds nothing otherwise.
func (d *Device) Scan(ctx context.Context) error {
	set := setStatus(d.file)
	if d.remote {
		set = func(status *unix.LoopInfo64) error {
			data := unsafe.Slice((*byte)(unsafe.Pointer(status)), unsafe.Sizeof(*status))
			return d.loop.Helper.Ioctl(ctx, d.file, unix.LOOP_SET_STATUS64, data)
		}
	}
	return d.loop.changeFlags(d.file, "loop scan", 0, flagPartscan, set)
}

// Release frees a device that nobody else uses yet. Partitions that were added must be deleted before.
func (d *Device) Release() error {
	err := d.loop.clear(d.file)
	d.loop.close(d)
	return err
}

func (l *Loop) close(d *Device) {
	_ = d.file.Close()
	l.removeNode(d.ID, d.Path)
}

func (l *Loop) removeNode(id ID, path string) {
	if id.MadeNode {
		_ = l.Nodes.RemoveUnless(path, id.Number, func() bool { return bound(id.Number) })
	}
}

func setStatus(f *os.File) func(*unix.LoopInfo64) error {
	return func(status *unix.LoopInfo64) error { return unix.IoctlLoopSetStatus64(int(f.Fd()), status) }
}

// changeFlags removes and adds flags: only AUTOCLEAR can be taken, AUTOCLEAR and PARTSCAN added. The kernel waits until all requests
// to the device have ended, some 15 ms even if there are none (6.18): not for what has to be done often.
func (l *Loop) changeFlags(f *os.File, act string, take, add uint32, set func(*unix.LoopInfo64) error) error {
	status, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil {
		return fmt.Errorf("ask for the state of %s: %w", f.Name(), err)
	}
	status.Flags = status.Flags&^take | add
	err = l.Failpoint.Do(act, func() error { return set(status) })
	if err != nil {
		return fmt.Errorf("set the state of %s: %w", f.Name(), err)
	}
	return nil
}

// clear detaches the file: LOOP_CLR_FD. While others have the device open the kernel only sets AUTOCLEAR; and newer
// kernels always wait for the last close.
func (l *Loop) clear(f *os.File) error {
	err := l.Failpoint.Do("loop clear", func() error { return unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0) })
	if err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("detach %s: %w", f.Name(), err)
	}
	return nil
}
