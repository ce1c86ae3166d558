// Package nbd connects network block devices to sockets that a process of ours serves: linux/nbd-netlink.h.
//
// The kernel sends the requests of a device over a socket in the transmission phase of the NBD protocol; this package makes the device,
// gives it a new socket when the process behind the old one ended, and disconnects it. Package web/nbdserve is the other end.
//
// These rules are read in drivers/block/nbd.c of Linux 6.1:
//
//   - A request that was sent before its socket died is sent again only when its time is over (Options.Timeout), to whichever socket is
//     in use then.
//   - A request whose time is over takes its socket with it, also a healthy one.
//   - Reconfigure replaces a socket that is dead, and silently closes the new one if none is: the caller shuts the old one down
//     before, and looks whether the new one is used.
//   - While no socket lives, readers wait for Options.DeadConnection, then they get EIO.
package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/sys/module"
)

// Commands and attributes of linux/nbd-netlink.h.
const (
	commandConnect     = 1
	commandDisconnect  = 2
	commandReconfigure = 3

	attrIndex          = 1
	attrSize           = 2
	attrBlockSize      = 3
	attrTimeout        = 4
	attrServerFlags    = 5
	attrSockets        = 7
	attrDeadConnection = 8
	attrBackend        = 10 // Linux 5.14

	socketItem = 1
	socketFD   = 1

	flagHasFlags  = 1 << 0
	flagReadOnly  = 1 << 1
	flagMultiConn = 1 << 8
)

// Options describe a device.
type Options struct {
	Size           int64         // in bytes, a multiple of BlockSize
	BlockSize      int64         // in bytes: 512 to 4096, a power of two
	Timeout        time.Duration // of one request, rounded up to seconds
	DeadConnection time.Duration // how long readers wait while no socket lives, rounded up to seconds
	Backend        string        // identifies the device's content; a later Reconfigure must name the same
}

// Kernel is the way to network block devices. It is safe for concurrent use.
type Kernel struct{ Failpoint failpoint.Hook }

// Load loads the module if the kernel lacks the driver. The error is an errs.Unsupported that names nbd.
func (k Kernel) Load(ctx context.Context) error {
	g, err := dial()
	if err == nil {
		g.close()
		return nil
	}
	if !errors.Is(err, errNoFamily) {
		return err
	}
	return module.Load(ctx, k.Failpoint, "nbd")
}

// Find fails as Load would if the kernel has no such driver. It loads nothing.
func (k Kernel) Find(ctx context.Context) error {
	g, err := dial()
	if err == nil {
		g.close()
		return nil
	}
	if !errors.Is(err, errNoFamily) {
		return err
	}
	return module.Find(ctx, k.Failpoint, "nbd")
}

// Pair returns two connected sockets: one for the kernel, one for the process that serves.
func Pair() (kernel, peer *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	return os.NewFile(uintptr(pair[0]), "nbd"), os.NewFile(uintptr(pair[1]), "nbd peer"), nil
}

// Dropped reports whether the kernel does not use the socket that it got by Reconfigure, whose other end is peer. The caller has closed its
// own descriptor of that socket.
func Dropped(peer *os.File) bool {
	wait := []unix.PollFd{{Fd: int32(peer.Fd())}}
	n, err := unix.Poll(wait, 0)
	return err != nil || n > 0 && wait[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
}

// Connect makes a read-only device that sends its requests over socket, and returns its number N of /dev/nbdN. The kernel chooses a
// free one.
func (k Kernel) Connect(socket *os.File, o Options) (index int, err error) {
	answer, err := k.ask("nbd connect", commandConnect, append(o.attributes(), sockets(socket))...)
	if err != nil {
		return -1, fmt.Errorf("connect a network block device: %w", err)
	}
	value := answer[attrIndex]
	if len(value) < 4 {
		return -1, errors.New("connect a network block device: the kernel did not return its index")
	}
	return int(binary.NativeEndian.Uint32(value)), nil
}

// Reconfigure gives a device whose socket is dead a new one. The kernel refuses a Backend that is not the device's.
func (k Kernel) Reconfigure(index int, socket *os.File, o Options) error {
	attributes := append(o.attributes(), number32(attrIndex, uint32(index)), sockets(socket))
	if _, err := k.ask("nbd reconfigure", commandReconfigure, attributes...); err != nil {
		return fmt.Errorf("give /dev/nbd%d a new socket: %w", index, err)
	}
	return nil
}

// Disconnect ends a device: requests that wait get EIO. A device that is not connected is no error.
func (k Kernel) Disconnect(index int) error {
	_, err := k.ask("nbd disconnect", commandDisconnect, number32(attrIndex, uint32(index)))
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("disconnect /dev/nbd%d: %w", index, err)
	}
	return nil
}

func (k Kernel) ask(act string, command uint8, attributes ...[]byte) (answer map[uint16][]byte, err error) {
	g, err := dial()
	if errors.Is(err, errNoFamily) {
		return nil, errs.New(errs.Unsupported, "%w: load the module nbd", err)
	}
	if err != nil {
		return nil, err
	}
	defer g.close()
	err = k.Failpoint.Do(act, func() error {
		answer, err = g.ask(command, attributes...)
		return err
	})
	return answer, err
}

func (o Options) attributes() [][]byte {
	all := [][]byte{
		number64(attrSize, uint64(o.Size)), number64(attrBlockSize, uint64(o.BlockSize)),
		number64(attrTimeout, seconds(o.Timeout)), number64(attrDeadConnection, seconds(o.DeadConnection)),
		number64(attrServerFlags, flagHasFlags|flagReadOnly|flagMultiConn),
	}
	if o.Backend != "" {
		all = append(all, text(attrBackend, o.Backend))
	}
	return all
}

func seconds(d time.Duration) uint64 { return uint64(math.Ceil(d.Seconds())) }

func sockets(socket *os.File) []byte {
	return nested(attrSockets, nested(socketItem, number32(socketFD, uint32(socket.Fd()))))
}

// State is what sysfs shows of a device.
type State struct {
	PID      int    // of the process that connected it; 0 if it is not connected
	Size     int64  // in bytes
	Backend  string // Options.Backend, or empty before Linux 5.14
	Inflight int    // requests under way
	Held     bool   // other devices are built on it
}

// Look reads the state of /dev/nbdN. An error that is os.ErrNotExist says that the kernel has no such device.
func Look(index int) (State, error) {
	dir := "/sys/block/nbd" + strconv.Itoa(index)
	sectors, err := number(dir, "size")
	if err != nil {
		return State{}, err
	}
	s := State{Size: sectors * 512}
	pid, err := number(dir, "pid") // there only while it is connected
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return s, err
	}
	s.PID = int(pid)
	if data, err := os.ReadFile(filepath.Join(dir, "backend")); err == nil {
		s.Backend = strings.TrimSuffix(string(data), "\n")
	}
	held, err := os.ReadDir(filepath.Join(dir, "holders"))
	if err != nil {
		return s, err
	}
	s.Held = len(held) > 0
	data, err := os.ReadFile(filepath.Join(dir, "inflight"))
	if err != nil {
		return s, err
	}
	for field := range strings.FieldsSeq(string(data)) {
		n, err := strconv.Atoi(field)
		if err != nil {
			return s, fmt.Errorf("read %s/inflight: %w", dir, err)
		}
		s.Inflight += n
	}
	return s, nil
}

// Find returns the number of the connected device with a backend.
func Find(backend string) (index int, found bool, err error) {
	files, err := filepath.Glob("/sys/block/nbd*/backend")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil || strings.TrimSuffix(string(text), "\n") != backend {
			continue // another one, or just disconnected
		}
		index, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(filepath.Dir(file)), "nbd"))
		return index, err == nil, err
	}
	return -1, false, err
}

// WaitFree waits until the kernel has freed a device that was disconnected: it has no content and no requests, and nothing is built on it.
// A device that has another backend by now counts as free.
func WaitFree(ctx context.Context, index int, backend string) error {
	const every = 20 * time.Millisecond // the kernel has no event for it
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		s, err := Look(index)
		if errors.Is(err, os.ErrNotExist) || err == nil && (s.free() || s.PID != 0 && s.Backend != backend) {
			return nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return errors.Join(err, context.Cause(ctx))
		}
	}
}

func (s State) free() bool { return s.PID == 0 && s.Size == 0 && s.Inflight == 0 && !s.Held }

func number(dir, name string) (int64, error) {
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read %s/%s: %w", dir, name, err)
	}
	return n, nil
}
