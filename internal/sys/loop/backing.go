package loop

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/sys/block"
)

// Backing is the file of a loop device.
type Backing struct {
	Dev    uint64 // st_dev and st_ino, as the loop driver reports them
	Inode  uint64
	Device uint64 // st_rdev, if the file is a block device
	Mark   string // as in Options
}

// Bound returns the numbers of all loop devices that have a file.
func Bound() ([]uint64, error) {
	dirs, err := filepath.Glob("/sys/block/loop*/loop") // exists while the device has a file
	if err != nil {
		return nil, fmt.Errorf("list loop devices: %w", err)
	}
	var all []uint64
	for _, dir := range dirs {
		if number, err := block.NumberOf(filepath.Dir(dir)); err == nil { // else it was removed meanwhile
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
