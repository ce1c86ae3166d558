package main

import (
	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/container/proto"
)

// record completes what is told of the end of a container, and writes it down for a daemon that comes when this process is gone. If
// it can't be written, that daemon finds nobody who knows.
func (s *supervisor) record(exit *proto.Exit) {
	history := s.daemon.history()
	exit.Since, exit.Asked = history.Since, history.Asked
	if kills, ok := s.group.Entry("memory.events", "oom_kill"); ok {
		exit.OOM = new(kills > 0)
	}
	_ = writeWhole(proto.SupervisorLogs, s.config.ExitName, exit.Message())
}

// writeWhole writes a file that is there with all of its content or not at all.
func writeWhole(dir int, name string, content []byte) error {
	part := name + proto.ExitNew
	file, err := unix.Openat(dir, part, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	n, err := writeOnce(file, content)
	unix.Close(file)
	if err == nil && n < len(content) {
		err = unix.ENOSPC
	}
	if err == nil {
		err = unix.Renameat(dir, part, dir, name)
	}
	if err != nil {
		_ = unix.Unlinkat(dir, part, 0)
	}
	return err
}
