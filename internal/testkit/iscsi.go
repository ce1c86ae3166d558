package testkit

import (
	"path/filepath"
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

// Stop takes the target away, as when its machine dies; its disks keep what was written.
func (x *Target) Stop(t testing.TB) {
	t.Helper()
	Run(t, filepath.Join(Guest(t), "iscsi"), "-r", x.IQN)
}
