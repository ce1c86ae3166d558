package block_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/block"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// device opens a loop device of 8 MiB, which is gone after the test.
func device(t *testing.T, options ...string) *os.File {
	t.Helper()
	testkit.Root(t)
	testkit.Need(t, "losetup")
	image := filepath.Join(testkit.RunDir(t), "image")
	if err := os.WriteFile(image, make([]byte, 8*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	path := strings.TrimSpace(testkit.Run(t, "losetup", append(options, "--find", "--show", image)...))
	t.Cleanup(func() { testkit.Run(t, "losetup", "-d", path) })
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestStat(t *testing.T) {
	f := device(t, "--read-only", "--sector-size", "4096")
	info, err := block.Stat(f)
	if err != nil {
		t.Fatal(err)
	}
	if info.Name != filepath.Base(f.Name()) || info.Size != 8*mib || !info.ReadOnly || info.Sector != 4096 {
		t.Errorf("info %+v", info)
	}
	sequence, err := os.ReadFile(filepath.Join(block.Sysfs(info.Number), "diskseq"))
	if err != nil {
		t.Fatal(err)
	}
	if got := testkit.Run(t, "printf", "%d", strings.TrimSpace(string(sequence))); got == "0" || info.Sequence == 0 {
		t.Errorf("sequence %d, sysfs says %s", info.Sequence, got)
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if _, err := block.Stat(null); !errors.Is(err, block.ErrNotBlock) || !errs.Is(err, errs.Invalid) {
		t.Errorf("/dev/null: error %v", err)
	}
}

func TestPartitions(t *testing.T) {
	f := device(t)
	number, err := block.Number(f)
	if err != nil {
		t.Fatal(err)
	}
	if parts, err := block.Partitions(number); err != nil || len(parts) != 0 {
		t.Fatalf("at first: %+v, %v", parts, err)
	}
	want := block.Partition{Index: 7, Start: mib, Size: 2 * mib}
	if err := block.AddPartition(nil, f, want); err != nil {
		t.Fatal(err)
	}
	if err := block.AddPartition(nil, f, block.Partition{Index: 8, Start: 2 * mib, Size: mib}); !errors.Is(err, unix.EBUSY) {
		t.Errorf("an overlap: error %v, want EBUSY", err)
	}
	parts, err := block.Partitions(number)
	if err != nil || len(parts) != 1 || parts[0].Number == 0 {
		t.Fatalf("partitions %+v, %v", parts, err)
	}
	if got := parts[0]; got.Index != want.Index || got.Start != want.Start || got.Size != want.Size {
		t.Errorf("partition %+v, want %+v", got, want)
	}
	for range 2 { // the second time it is gone already
		if err := block.DeletePartition(nil, f, want.Index); err != nil {
			t.Error(err)
		}
	}
	if parts, err := block.Partitions(number); err != nil || len(parts) != 0 {
		t.Errorf("at last: %+v, %v", parts, err)
	}
}

// On a node without devtmpfs the device nodes are made.
func TestNodes(t *testing.T) {
	f := device(t)
	number, err := block.Number(f)
	if err != nil {
		t.Fatal(err)
	}
	if path, made, err := (block.Nodes{}).Ensure(number); path != f.Name() || made || err != nil {
		t.Errorf("in /dev: %s, made %v, %v", path, made, err)
	}
	nodes := block.Nodes{Dir: t.TempDir()}
	path, made, err := nodes.Ensure(number)
	if err != nil || !made {
		t.Fatalf("made %v, %v", made, err)
	}
	if again, made, err := nodes.Ensure(number); again != path || !made || err != nil {
		t.Errorf("again: %s, made %v, %v", again, made, err)
	}
	node, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	if got, err := block.Number(node); got != number || err != nil {
		t.Errorf("number %d, %v; want %d", got, err, number)
	}
	if err := nodes.Remove(path, number+1); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the node of another device is removed: %v", err)
	}
	if err := nodes.Remove(path, number); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the node of a device that is there is removed: %v", err)
	}
	uses := []bool{false, true, false, false} // it comes into use while the node is removed, and is free again
	inUse := func() bool { defer func() { uses = uses[1:] }(); return uses[0] }
	if err := nodes.RemoveUnless(path, number, inUse); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the node stays: %v", err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := nodes.Ensure(number); !errs.Is(err, errs.Conflict) {
		t.Errorf("a file in the node's place: error %v", err)
	}
	if _, _, err := nodes.Ensure(unix.Mkdev(240, 99)); !errors.Is(err, unix.ENXIO) {
		t.Errorf("no such device: error %v", err)
	}
}
