package spawn

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Seal puts a program into sealed memory (memfd_create(2)) under a name that /proc shows: not even root in a
// container, which can reach what its supervisor executes by /proc, can change it. To execute it, give it to the child as
// descriptor N and execute /proc/self/fd/N. The caller closes it.
func Seal(name string, code []byte) (*os.File, error) { return Copy(name, bytes.NewReader(code)) }

// Copy is Seal for a program that need not be in memory twice meanwhile.
func Copy(name string, code io.Reader) (*os.File, error) {
	flags := unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate(name, flags|unix.MFD_EXEC) // Linux 6.3
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate(name, flags)
	}
	if err != nil {
		return nil, fmt.Errorf("make memory for %s: %w", name, err)
	}
	file := os.NewFile(uintptr(fd), name)
	_, err = io.Copy(file, code)
	if err == nil {
		_, err = unix.FcntlInt(file.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("put %s into memory: %w", name, err)
	}
	return file, nil
}
