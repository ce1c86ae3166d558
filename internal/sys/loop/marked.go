package loop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/sys/block"
)

// Marked returns the device that Attach has attached with a mark, which no two have, or an empty path. One that can't be looked at, since its
// file's server is gone, is an error only if none is found among the others.
func (l *Loop) Marked(ctx context.Context, mark string) (path string, id ID, err error) {
	dirs, err := filepath.Glob("/sys/block/loop*/loop") // is there as long as there is a file
	if err != nil {
		return "", id, fmt.Errorf("list loop devices: %w", err)
	}
	var unknown error
	for _, dir := range dirs {
		if !ours(dir) {
			continue
		}
		path, id, err := l.marked(ctx, filepath.Dir(dir), mark)
		if path != "" {
			return path, id, nil
		}
		unknown = errors.Join(unknown, err)
	}
	return "", id, unknown
}

// ours tells from sysfs(5) whether Attach may have made a device: most that it has not are not opened.
func ours(dir string) bool {
	for _, name := range []string{"autoclear", "offset", "sizelimit"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || strings.TrimSpace(string(text)) != "0" {
			return false
		}
	}
	return true
}

// marked returns the device that has a directory in sysfs, if it has that mark.
func (l *Loop) marked(ctx context.Context, dir, mark string) (path string, id ID, err error) {
	id.Number, err = block.NumberOf(dir)
	if errors.Is(err, unix.ENOENT) {
		return "", id, nil // removed meanwhile
	}
	if err != nil {
		return "", id, err
	}
	if path, id.MadeNode, err = l.Nodes.Ensure(id.Number); err != nil {
		return "", id, err
	}
	is, err := l.identify(ctx, path, mark, &id)
	if !is {
		l.removeNode(id, path)
		return "", id, err
	}
	return path, id, nil
}

// identify reports whether the device at path has a mark, and completes its id.
func (l *Loop) identify(ctx context.Context, path, mark string, id *ID) (bool, error) {
	found, err := l.read(ctx, path, id)
	return err == nil && found == mark, err
}

// MarkOf returns the mark of the device at path, and which device that is. The mark is empty if the device is free or is not a loop device.
func (l *Loop) MarkOf(ctx context.Context, path string) (mark string, id ID, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", id, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	const loopMajor = 7
	if id.Number = st.Rdev; st.Mode&unix.S_IFMT != unix.S_IFBLK || unix.Major(st.Rdev) != loopMajor {
		return "", id, nil
	}
	mark, err = l.read(ctx, path, &id)
	return mark, id, err
}

// read returns the mark of a device, and completes its id.
func (l *Loop) read(ctx context.Context, path string, id *ID) (mark string, err error) {
	f, err := os.OpenFile(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENXIO) {
		return "", nil // removed meanwhile
	}
	if err != nil {
		return "", fmt.Errorf("open loop device: %w", err)
	}
	defer f.Close()
	status, err := l.status(ctx, f)
	if errors.Is(err, unix.ENXIO) {
		return "", nil // free
	}
	if err != nil {
		return "", fmt.Errorf("ask for the state of %s: %w", path, err)
	}
	info, err := block.Stat(f)
	id.Sequence, id.Dev, id.Inode = info.Sequence, status.Device, status.Inode
	return unix.ByteSliceToString(status.File_name[:]), err
}

// status asks for the state of a device that may be another's, on a server that may be gone: first a helper waits for that.
func (l *Loop) status(ctx context.Context, f *os.File) (*unix.LoopInfo64, error) {
	if l.Helper != nil {
		if err := l.Helper.Ioctl(ctx, f, unix.LOOP_GET_STATUS64, make([]byte, unsafe.Sizeof(unix.LoopInfo64{}))); err != nil {
			return nil, err
		}
	}
	return unix.IoctlLoopGetStatus64(int(f.Fd()))
}
