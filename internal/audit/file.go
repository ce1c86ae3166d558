package audit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// file is a sink that rotates: PATH becomes PATH.1, PATH.1 becomes PATH.2.
type file struct {
	path  string
	limit int64
	files int
	f     *os.File
	size  int64
}

func openFile(path string, limit int64, files int) (*file, error) {
	s := &file{path: path, limit: limit, files: files}
	return s, s.begin()
}

// begin opens the file. A record that was cut off by a crash of the node ends there.
func (s *file) begin() error {
	f, err := os.OpenFile(s.path, os.O_RDWR|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case !info.Mode().IsRegular():
		err = fmt.Errorf("%s is not a regular file", s.path)
	case info.Mode().Perm()&0o022 != 0:
		err = fmt.Errorf("%s can be written by others: run chmod go-w", s.path)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	s.f, s.size = f, info.Size()
	last := make([]byte, 1)
	if n, _ := f.ReadAt(last, s.size-1); n == 1 && last[0] != '\n' {
		return s.append([]byte("\n"))
	}
	return nil
}

// reserve takes the blocks for n more bytes, so that a full file system is noticed before the change.
func (s *file) reserve(n int64) error {
	if err := s.current(); err != nil {
		return err
	}
	err := unix.Fallocate(int(s.f.Fd()), unix.FALLOC_FL_KEEP_SIZE, s.size, n)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		err = s.hasSpace(n)
	}
	if err != nil {
		return fmt.Errorf("reserve space in %s: %w", s.path, err)
	}
	return nil
}

// hasSpace is for file systems on which nothing can be reserved.
func (s *file) hasSpace(n int64) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(s.f.Fd()), &st); err != nil {
		return err
	}
	if int64(st.Bavail)*st.Bsize < n {
		return unix.ENOSPC
	}
	return nil
}

// write appends a line, or nothing.
func (s *file) write(line []byte) error {
	if err := s.current(); err != nil {
		return err
	}
	return s.append(line)
}

func (s *file) append(line []byte) error {
	if _, err := s.f.Write(line); err != nil {
		return errors.Join(err, s.f.Truncate(s.size))
	}
	s.size += int64(len(line))
	return nil
}

// current makes s.f the file that is at the path, also after logrotate has moved it, and rotates a full one.
func (s *file) current() error {
	if s.f == nil {
		return s.begin()
	}
	there, err := os.Lstat(s.path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	ours, failed := s.f.Stat()
	if failed != nil {
		return failed
	}
	if err != nil || !os.SameFile(there, ours) {
		if err := s.end(); err != nil {
			return err
		}
		return s.begin()
	}
	if s.size = ours.Size(); s.size < s.limit { // another process can have truncated it
		return nil
	}
	return s.rotate()
}

func (s *file) rotate() error {
	for n := s.files - 1; n > 0; n-- {
		older, newer := s.path+"."+strconv.Itoa(n), s.path
		if n > 1 {
			newer += "." + strconv.Itoa(n-1)
		}
		if err := os.Rename(newer, older); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("rotate %s: %w", filepath.Base(s.path), err)
		}
	}
	if s.files == 1 {
		return s.f.Truncate(0)
	}
	if err := s.end(); err != nil {
		return err
	}
	return s.begin()
}

// end gives back the blocks that were reserved and closes the file.
func (s *file) end() error {
	err := errors.Join(s.f.Truncate(s.size), s.f.Close())
	s.f = nil
	return err
}

// Close implements io.Closer.
func (s *file) Close() error {
	if s.f == nil {
		return nil
	}
	return s.end()
}
