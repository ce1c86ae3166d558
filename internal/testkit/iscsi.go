package testkit

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Target is an iSCSI target of the guest's own kernel (LIO), on 127.0.0.1.
type Target struct {
	IQN     string
	options []string
}

// StartTarget starts a target in the guest of test/vm, named after the last part of its IQN, and takes it away after the
// test. Options are those of test/vm/svc/iscsi.
func StartTarget(t testing.TB, name string, options ...string) *Target {
	t.Helper()
	target := &Target{IQN: "iqn.2026-05.org.example:" + name, options: options}
	target.Start(t)
	t.Cleanup(func() { target.Stop(t) })
	return target
}

// Start starts a target that was stopped.
func (x *Target) Start(t testing.TB) {
	t.Helper()
	Run(t, filepath.Join(Guest(t), "iscsi"), append(x.options, x.IQN)...)
}

// StartWith is Start with further options, which come last.
func (x *Target) StartWith(t testing.TB, options ...string) {
	t.Helper()
	Run(t, filepath.Join(Guest(t), "iscsi"), append(append(slices.Clone(x.options), options...), x.IQN)...)
}

// Link puts a disk, by its number, in the place of a unit, while initiators use it.
func (x *Target) Link(t testing.TB, lun, disk int) {
	t.Helper()
	Run(t, filepath.Join(Guest(t), "iscsi"), "-x", fmt.Sprintf("%d:%d", lun, disk), x.IQN)
}

// Disk returns the file that is the content of a disk.
func (x *Target) Disk(disk int) string {
	return fmt.Sprintf("/var/tmp/%s-%d", x.IQN[strings.LastIndex(x.IQN, ":")+1:], disk)
}

// Stop takes the target away, as when its machine dies; its disks keep what was written.
func (x *Target) Stop(t testing.TB) {
	t.Helper()
	Run(t, filepath.Join(Guest(t), "iscsi"), "-r", x.IQN)
}
