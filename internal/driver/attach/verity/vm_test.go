package verity_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/attach/loopback"
	"github.com/kraken-hpc/imageapi/internal/driver/attach/verity"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest/mounttest"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/oneshot"
	"github.com/kraken-hpc/imageapi/internal/proc/spawn"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

var built = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "iat-init-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	return testkit.BuildInit(dir)
})

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newDriver returns what makes a loopback driver with verity. The test also proves that no device of the device mapper is left.
func newDriver(t *testing.T) func(g failpoint.Hook) driver.Driver {
	t.Helper()
	testkit.Guest(t)
	testkit.Run(t, "modprobe", "-a", "loop", "dm_mod")
	code, err := built()
	must(t, err)
	init, err := spawn.Seal("imageapi-init", code)
	must(t, err)
	t.Cleanup(func() { init.Close() })
	t.Cleanup(func() {
		if left := devices(t); left != "" {
			t.Errorf("left: %s", left)
		}
	})
	return func(g failpoint.Hook) driver.Driver {
		h := oneshot.New(init, g)
		return verity.Over(loopback.New(loopback.Options{Failpoint: g, Helper: h}), verity.Options{Failpoint: g, Helper: h})
	}
}

// devices names the devices of the device mapper that are the server's.
func devices(t *testing.T) string {
	t.Helper()
	var ours []string
	for line := range strings.Lines(testkit.Run(t, "dmsetup", "ls")) {
		if strings.HasPrefix(line, "imageapi-") {
			ours = append(ours, line)
		}
	}
	return strings.Join(ours, "")
}

func def(path, more, verity string) string {
	return fmt.Sprintf(`{"kind":"loopback","loopback":{"base":"root","path":%q%s},"verity":{%s}}`, path, more, verity)
}

// image writes a file of 1 MiB of random data.
func image(t *testing.T, path string) string {
	t.Helper()
	testkit.Run(t, "dd", "if=/dev/urandom", "of="+path, "bs=64k", "count=16", "status=none")
	return path
}

func TestDriver(t *testing.T) {
	newDriver := newDriver(t)
	dir := testkit.RunDir(t)
	file := func(name string) string { return filepath.Join(dir, name) }
	good := image(t, file("good"))
	root, offset := testkit.HashTree(t, good, "")
	right := fmt.Sprintf(`"root_hash":%q,"hash_offset":%d`, root, offset)
	wrong := strings.Repeat("0", 64)
	at := func(offset int64) string { return fmt.Sprintf(`"root_hash":%q,"hash_offset":%d`, root, offset) }
	other, _ := testkit.HashTree(t, image(t, file("other")), file("other.tree"), "--hash=sha512", "--hash-block-size=1024", "--salt=-")
	for name, at := range map[string]int64{"first": 0, "tree": offset + 4096} {
		testkit.Run(t, "cp", good, file(name))
		testkit.FlipBit(t, file(name), at)
	}
	testkit.Run(t, "cp", good, file("cut"))
	must(t, os.Truncate(file("cut"), offset+4096))
	drivertest.Run(t, drivertest.Case{
		New:   newDriver,
		Scope: testkit.Scope{Dirs: []string{dir}},
		Good:  def(good, "", right),
		Hold:  holdBelow,
		Wrong: []drivertest.Wrong{
			{Name: "nothing", Def: def(good, "", ""), Paths: []string{"verity.hash_offset", "verity.root_hash"}},
			{Name: "of the kind and of verity", Def: def("", "", `"root_hash":"zz"`), Paths: []string{"loopback.path", "verity.hash_offset", "verity.root_hash"}},
			{Name: "not hex", Def: def(good, "", `"root_hash":"`+strings.Repeat("x", 64)+`","hash_offset":512`), Paths: []string{"verity.root_hash"}},
			{Name: "short", Def: def(good, "", `"root_hash":"00","hash_offset":512`), Paths: []string{"verity.root_hash"}},
			{Name: "not aligned", Def: def(good, "", at(1000)), Paths: []string{"verity.hash_offset"}},
			{Name: "negative", Def: def(good, "", at(-512)), Paths: []string{"verity.hash_offset"}},
			{Name: "on_corruption", Def: def(good, "", right+`,"on_corruption":"panic"`), Paths: []string{"verity.on_corruption"}},
			{Name: "partitions", Def: def(good, `,"readPartitions":true`, right), Paths: []string{"loopback.readPartitions"}},
		},
		Fails: []drivertest.Failing{
			{Name: "wrong root hash", Def: def(good, "", fmt.Sprintf(`"root_hash":%q,"hash_offset":%d`, wrong, offset)), Sudden: true, Class: errs.Invalid, Text: "verity.root_hash: the first block of /dev/loop"},
			{Name: "root hash of another length", Def: def(good, "", fmt.Sprintf(`"root_hash":%q,"hash_offset":%d`, other, offset)), Sudden: true, Class: errs.Invalid, Text: "the tree is one of sha256, with 64"},
			{Name: "first block", Def: def(file("first"), "", right), Sudden: true, Class: errs.Invalid, Text: "verity.root_hash: the first block of /dev/loop"},
			{Name: "tree", Def: def(file("tree"), "", right), Sudden: true, Class: errs.Invalid, Text: "verity.root_hash: the first block of /dev/loop"},
			{Name: "no superblock", Def: def(good, "", at(4096)), Sudden: true, Class: errs.Invalid, Text: "verity.hash_offset: at byte 4096 of /dev/loop"},
			{Name: "behind the end", Def: def(good, "", at(1<<40)), Sudden: true, Class: errs.Invalid, Text: "has only"},
			{Name: "truncated tree", Def: def(file("cut"), "", right), Sudden: true, Class: errs.Invalid, Text: "is it truncated?"},
			{Name: "no file", Def: def(file("none"), "", right), Class: errs.Invalid, Text: "no such file"},
		},
	})
	t.Run("another device", func(t *testing.T) {
		drivertest.Run(t, drivertest.Case{
			New:   newDriver,
			Scope: testkit.Scope{Dirs: []string{dir}, Ignore: []string{"other.tree"}},
			Good:  def(file("other"), "", fmt.Sprintf(`"root_hash":%q,"hash_device":{"id":1}`, other)),
			Needs: []driver.Status{mounttest.Attached(t, file("other.tree"))},
			Hold:  holdOpen,
		})
	})
}

// holdBelow opens the device below: once the one above is gone nobody can bring it back.
func holdBelow(t *testing.T, status driver.Status) (string, func()) {
	t.Helper()
	var notes struct{ Under driver.Status }
	must(t, json.Unmarshal(status.Notes, &notes))
	return holdOpen(t, notes.Under)
}

func holdOpen(t *testing.T, status driver.Status) (string, func()) {
	t.Helper()
	pid, release := mounttest.Hold(t, "/", "exec 3<"+status.Device.Path)
	return pid + "(sh) has " + status.Device.Path + " open", release
}
