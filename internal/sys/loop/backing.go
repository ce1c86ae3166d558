package loop

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Backing is the file of a loop device.
type Backing struct {
	Dev    uint64 // st_dev and st_ino, as the loop driver reports them
	Inode  uint64
	Device uint64 // st_rdev, if the file is a block device
	Mark   string // as in Options
}

// Bound returns the numbers of all loop devices that have a file, but for those that skip tells.
func Bound(skip func(number uint64) bool) ([]uint64, error) {
	const dir, major = "/sys/dev/block", 7
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list loop devices: %w", err)
	}
	var all []uint64
	for _, e := range entries {
		minor, is := strings.CutPrefix(e.Name(), strconv.Itoa(major)+":")
		n, err := strconv.ParseUint(minor, 10, 32)
		if number := unix.Mkdev(major, uint32(n)); is && err == nil && !skip(number) && bound(number) {
			all = append(all, number)
		}
	}
	return all, nil
}

// Backing returns the file of a loop device. If the file's server may be gone, a helper waits for it. A device without a file is ENXIO.
func (l *Loop) Backing(ctx context.Context, number uint64, mayHang bool) (b Backing, err error) {
	path, made, err := l.Nodes.Ensure(number)
	if err != nil {
		return b, err
	}
	defer l.removeNode(ID{Number: number, MadeNode: made}, path)
	f, err := os.OpenFile(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return b, fmt.Errorf("open loop device: %w", err)
	}
	defer f.Close()
	ask := Loop{}
	if mayHang {
		ask.Helper = l.Helper
	}
	status, err := ask.status(ctx, f)
	if err != nil {
		return b, fmt.Errorf("read the state of %s: %w", path, err)
	}
	return Backing{Dev: status.Device, Inode: status.Inode, Device: status.Rdevice, Mark: unix.ByteSliceToString(status.File_name[:])}, nil
}
