package testkit

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// Mapped is a block device over an image that can be suspended: one that does not answer, and answers later.
type Mapped struct {
	Path string // of the device
	name string
}

// Map makes a device of the device mapper over an image, in the guest of test/vm, until the test has ended.
func Map(t testing.TB, image string) *Mapped {
	t.Helper()
	Guest(t)
	Run(t, "modprobe", "-a", "loop", "dm_mod")
	below := strings.TrimSpace(Run(t, "losetup", "--find", "--show", image))
	t.Cleanup(func() { Run(t, "losetup", "--detach", below) })
	sectors := strings.TrimSpace(Run(t, "blockdev", "--getsz", below))
	m := &Mapped{name: "test-" + filepath.Base(below)}
	Run(t, "dmsetup", "create", "--noudevsync", m.name, "--table", fmt.Sprintf("0 %s linear %s 0", sectors, below))
	t.Cleanup(func() { Run(t, "dmsetup", "remove", "--noudevsync", m.name) })
	m.Path = "/dev/" + strings.TrimSpace(Run(t, "dmsetup", "info", "--columns", "--noheadings", "--options", "blkdevname", m.name))
	return m
}

// Suspend lets all requests to the device wait until the returned function is called or the test has ended. The file system on it is
// not told.
func (m *Mapped) Suspend(t testing.TB) (resume func()) {
	t.Helper()
	Run(t, "dmsetup", "suspend", "--nolockfs", "--noflush", m.name)
	resume = sync.OnceFunc(func() { Run(t, "dmsetup", "resume", "--noudevsync", m.name) })
	t.Cleanup(resume)
	return resume
}
