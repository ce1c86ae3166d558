package loopback

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/mount/remote"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/block"
	"github.com/kraken-hpc/imageapi/internal/sys/rootpath"
	"github.com/kraken-hpc/imageapi/models"
)

// sectorSize is the least unit of a loop device, in bytes; the kernel would silently leave out the rest of a file.
const sectorSize = 512

// source is the file that is to become a device.
type source struct {
	*os.File
	readOnly bool   // no write may reach it; the descriptor then can't write
	remote   bool   // a server has it
	buffered bool   // it can't be read past the page cache
	root     string // the directory that its path starts from
}

// open finds the file and opens it for no more than is needed. An image is untrusted: the path is resolved once,
// and nothing is opened before it is known to be a file that can be opened without harm.
func (u *unit) open(ctx context.Context, place driver.Placement) (source, error) {
	if u.Base == models.AttachLoopbackBaseRoot {
		return u.openOnNode(ctx)
	}
	if len(place.Needs) != 1 || place.Needs[0].Tree == nil {
		return source{}, errs.New(errs.Internal, "open %q: the mount it lies in is not there", u.Path)
	}
	tree := place.Needs[0].Tree
	found, err := remote.Open(ctx, u.driver.helper, tree, u.Path, unix.O_PATH)
	if err != nil {
		return source{}, err
	}
	defer found.Close()
	marked, err := u.checkType(found)
	if err != nil {
		return source{}, err
	}
	src, err := u.openFound(ctx, found, tree.Remote, u.ReadOnly || tree.ReadOnly || marked)
	src.root = tree.Path
	return src, err
}

// openOnNode is open with the base "root".
func (u *unit) openOnNode(ctx context.Context) (source, error) {
	found, err := remote.OpenOnNode(ctx, u.driver.helper, u.Path, unix.O_PATH)
	if err != nil {
		return source{}, err
	}
	defer found.Close()
	if err := u.checkOutside(found); err != nil {
		return source{}, err
	}
	marked, err := u.checkType(found)
	if err != nil {
		return source{}, err
	}
	mayHang, err := remote.MayHang(found)
	if err != nil {
		return source{}, err
	}
	src, err := u.openFound(ctx, found, mayHang && u.driver.helper != nil, u.ReadOnly || marked)
	src.root = "/"
	return src, err
}

// checkOutside refuses what lies in our own mount directories, whichever way the path went.
func (u *unit) checkOutside(found *os.File) error {
	at, err := location(found)
	if err != nil {
		return err
	}
	for _, path := range u.driver.forbidden {
		dir, err := rootpath.Open("/", path, unix.O_PATH)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return err
		}
		top, err := location(dir)
		dir.Close()
		if err != nil {
			return err
		}
		if at == top || strings.HasPrefix(at, strings.TrimSuffix(top, "/")+"/") {
			return errs.New(errs.Invalid, "open %q: the path is in the mount directory %s; use base %q and give the mount",
				u.Path, top, models.AttachLoopbackBaseMount)
		}
	}
	return nil
}

// location returns the path of what is open as f, without symbolic links.
func location(f *os.File) (string, error) {
	path, err := os.Readlink(link(f))
	if err != nil {
		return "", fmt.Errorf("resolve %q: %w", f.Name(), err)
	}
	return path, nil
}

func link(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// checkType refuses what can't be a disk, and reports whether its owner marked it as not to be written.
func (u *unit) checkType(found *os.File) (readOnly bool, err error) {
	st, err := remote.Stat(found)
	if err != nil {
		return false, err
	}
	const anyWrite = 0o222
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFBLK:
		return st.Mode&anyWrite == 0, nil
	case unix.S_IFDIR:
		return false, errs.New(errs.Invalid, "attach %q: is a directory; give a regular file or a block device", u.Path)
	}
	return false, errs.New(errs.Invalid, "attach %q: neither a regular file nor a block device", u.Path)
}

// openFound opens the file itself, for writing only if it is to be written. A descriptor that can write would keep
// the file system below from becoming read-only.
func (u *unit) openFound(ctx context.Context, found *os.File, remote, readOnly bool) (source, error) {
	f, err := u.reopen(ctx, found, remote, unix.O_RDONLY)
	if err != nil {
		return source{}, err
	}
	if err := u.checkContent(f, &readOnly); err != nil {
		f.Close()
		return source{}, err
	}
	src := source{File: f, readOnly: true, remote: remote}
	if !readOnly {
		if err := u.openToWrite(ctx, found, &src); err != nil {
			f.Close()
			return source{}, err
		}
	}
	src.buffered, err = u.isBuffered(ctx, found, remote)
	if err != nil {
		src.Close()
	}
	return src, err
}

// openToWrite makes src one that can be written to, if the file can be.
func (u *unit) openToWrite(ctx context.Context, found *os.File, src *source) error {
	w, err := u.reopen(ctx, found, src.remote, unix.O_RDWR)
	for _, errno := range []error{unix.EROFS, unix.EACCES, unix.EPERM, unix.ETXTBSY} {
		if errors.Is(err, errno) {
			return nil
		}
	}
	if err != nil {
		return err
	}
	src.Close()
	src.File, src.readOnly = w, false
	return nil
}

// isBuffered reports whether the file can't be read by direct I/O. The loop driver finds that out by itself, except for an
// overlay: that takes direct I/O, and then fails each request if the file system that the file is on does not. Opening the file,
// which an overlay does below too, tells.
func (u *unit) isBuffered(ctx context.Context, found *os.File, remote bool) (bool, error) {
	f, err := u.reopen(ctx, found, remote, unix.O_RDONLY|unix.O_DIRECT)
	if errors.Is(err, unix.EINVAL) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	return false, f.Close()
}

func (u *unit) reopen(ctx context.Context, found *os.File, onServer bool, flags int) (*os.File, error) {
	flags |= unix.O_NONBLOCK | unix.O_CLOEXEC // somebody may hold a lease on the file
	f, err := u.again(ctx, found, onServer, flags)
	if at, atErr := location(found); err != nil && onServer && atErr == nil {
		err = remote.Denied(err, at)
	}
	switch {
	case errs.Is(err, errs.Remote):
		return nil, err
	case errors.Is(err, unix.EWOULDBLOCK):
		return nil, errs.New(errs.Conflict, "open %q: another program has a lease on it: %w", u.Path, err)
	case errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENOMEDIUM), errors.Is(err, unix.EACCES):
		return nil, errs.New(errs.Invalid, "open %q: %w", u.Path, err)
	case err != nil:
		return nil, fmt.Errorf("open %q: %w", u.Path, err)
	}
	return f, nil
}

func (u *unit) again(ctx context.Context, found *os.File, remote bool, flags int) (*os.File, error) {
	if remote {
		return u.driver.helper.Reopen(ctx, found, flags)
	}
	fd, err := unix.Open(link(found), flags, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), u.Path), nil
}

// checkContent refuses sizes that a device can't have, and finds file systems that are never written.
func (u *unit) checkContent(f *os.File, readOnly *bool) error {
	size, err := u.size(f, readOnly)
	if err != nil {
		return err
	}
	if size == 0 {
		return errs.New(errs.Invalid, "attach %q: the file is empty", u.Path)
	}
	if size < sectorSize {
		return u.ragged(size)
	}
	head, err := readHead(f)
	if err != nil {
		return err
	}
	needs, readOnlyType := packed(head)
	shown := size - size%sectorSize // the rest of the file is left out
	switch {
	case needs > size:
		return errs.New(errs.Invalid, "attach %q: the file is truncated: its size is %d bytes, and its file system needs %d", u.Path, size, needs)
	case readOnlyType && needs > shown:
		return errs.New(errs.Invalid, "attach %q: its size, %d bytes, is not a multiple of %d, and a device would lack the end of the file system: pad it (truncate -s %%%d)", u.Path, size, sectorSize, sectorSize)
	case size > shown && !readOnlyType: // else something follows the file system
		return u.ragged(size)
	}
	*readOnly = *readOnly || readOnlyType
	return nil
}

func (u *unit) ragged(size int64) error {
	return errs.New(errs.Invalid, "attach %q: its size, %d bytes, is not a multiple of %d; is it truncated or compressed?", u.Path, size, sectorSize)
}

func (u *unit) size(f *os.File, readOnly *bool) (int64, error) {
	st, err := remote.Stat(f)
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return int64(st.Size), err
	}
	info, err := block.Stat(f)
	*readOnly = *readOnly || info.ReadOnly
	return info.Size, err
}

// head is what a file begins with: enough for two superblocks.
type head [2048]byte

// readHead reads it. A file may be shorter: the rest is then zero.
func readHead(f *os.File) (h head, err error) {
	if n, err := f.ReadAt(h[:], 0); n < sectorSize {
		return h, fmt.Errorf("read %q: %w", f.Name(), err)
	}
	return h, nil
}

// packed reports whether the content is a SquashFS or EROFS file system, which is never written, by its magic number, and how many
// bytes it has. An image that was copied in part is not noticed by EROFS, and SquashFS does not say what is wrong with it.
func packed(h head) (size int64, is bool) {
	const (
		squashfsMagic = 0x73717368 // at 0
		squashfsSize  = 40         // 8 bytes, bytes_used
		erofs         = 1024       // where the superblock is
		erofsMagic    = 0xe0f5e1e2
		erofsBits     = 12 // 1 byte, the block size's logarithm
		erofsBlocks   = 36 // 4 bytes; of images with more, the lower half
	)
	le := binary.LittleEndian
	switch {
	case le.Uint32(h[:]) == squashfsMagic:
		return int64(le.Uint64(h[squashfsSize:])), true
	case le.Uint32(h[erofs:]) == erofsMagic:
		return int64(le.Uint32(h[erofs+erofsBlocks:])) << (h[erofs+erofsBits] & 0x1f), true
	}
	return 0, false
}
