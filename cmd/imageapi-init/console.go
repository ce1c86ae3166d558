package main

import (
	"bytes"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/container/proto"
)

// makeConsole makes a terminal in the container's own devpts and /dev/console of it.
func makeConsole(dev int) (master, slave int, failure *proto.Failure) {
	master, err := unix.Openat(dev, "pts/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, -1, failed("make a terminal", "/dev/pts/ptmx", err)
	}
	number, err := unix.IoctlGetUint32(master, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		return -1, -1, failed("make a terminal", "/dev/pts/ptmx", err)
	}
	name := "pts/" + strconv.Itoa(int(number))
	slave, err = unix.Openat(dev, name, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, -1, failed("open the terminal", "/dev/"+name, err)
	}
	if err := unix.Mknodat(dev, "console", unix.S_IFREG|0o600, 0); err != nil && err != unix.EEXIST {
		return -1, -1, failed("make", "/dev/console", err)
	}
	if err := cover(dev, name, dev, "console", 0); err != nil {
		return -1, -1, failed("attach the terminal", "/dev/console", err)
	}
	return master, slave, nil
}

// adopt makes the console what the log is filled from, in place of the pipe, and takes over the descriptors.
func (s *supervisor) adopt(master, terminal, notify int) error {
	s.terminal, s.notify = terminal, notify
	pump, err := pumpFrom(master, s.log.log, plain)
	if err != nil {
		return err
	}
	s.log.finish() // only this program had the pipe
	s.log = pump
	return nil
}

// plain leaves out the carriage returns that a terminal and those who know that they write to one put into the ends of
// lines.
func plain(b []byte) []byte { return bytes.ReplaceAll(b, []byte{'\r'}, nil) }
