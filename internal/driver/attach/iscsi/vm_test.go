package iscsi_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/attach/iscsi"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest/mounttest"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/oneshot"
	"github.com/kraken-hpc/imageapi/internal/proc/spawn"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

const initiator = "iqn.2026-05.org.example:node"

// node is a node that can reach targets.
type node struct {
	mounttest.World
	program *os.File
}

var built = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "iat-init-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	return testkit.BuildInit(dir)
})

// newNode also proves that the test leaves no session and no SCSI device.
func newNode(t *testing.T) *node {
	t.Helper()
	testkit.Guest(t)
	n := &node{World: mounttest.New(t)}
	code, err := built()
	must(t, err)
	n.program, err = spawn.Seal("imageapi-init", code)
	must(t, err)
	t.Cleanup(func() { n.program.Close() })
	before := traces()
	t.Cleanup(func() {
		if !testkit.Settles(func() bool { return traces() == before }) {
			t.Errorf("left: %s\nbefore: %s", traces(), before)
		}
	})
	return n
}

// traces names all that an iSCSI initiator makes in the kernel.
func traces() string {
	var all []string
	for _, class := range []string{"iscsi_session", "iscsi_connection", "iscsi_host", "scsi_device"} {
		found, _ := filepath.Glob("/sys/class/" + class + "/*")
		all = append(all, found...)
	}
	return strings.Join(all, " ")
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (n *node) driver(g failpoint.Hook) driver.Driver {
	n.Failpoint(g)
	return iscsi.New(n.options(g))
}

func (n *node) options(g failpoint.Hook) iscsi.Options {
	return iscsi.Options{Failpoint: g, Helper: oneshot.New(n.program, g), RunDir: n.Dir, Secrets: n.Mounts}
}

// def is a definition with further fields.
func def(target, fields string) string {
	return fmt.Sprintf(`{"kind":"iscsi","iscsi":{"initiator":%q,"target":%q,"host":"127.0.0.1"%s}}`, initiator, target, fields)
}

func TestDriver(t *testing.T) {
	n := newNode(t)
	target := testkit.StartTarget(t, "plain", "-c", "user:userssecret12", "-m", "target:targetssecret").IQN
	auth := `,"auth":{"username":"user","secret":"userssecret12","target_username":"target","target_secret":"targetssecret"}`
	drivertest.Run(t, drivertest.Case{
		New:     n.driver,
		Good:    def(target, auth),
		Secrets: []string{"userssecret12", "targetssecret"},
		Single:  true,
		Hold:    hold,
		Fails: []drivertest.Failing{
			{Name: "no such host", Def: strings.Replace(def(target, auth), "127.0.0.1", "no-such-host.invalid", 1), Sudden: true, Class: errs.Remote, Text: "no-such-host.invalid"},
			{Name: "refused", Def: def(target, auth+`,"port":3999`), Sudden: true, Class: errs.Remote, Text: "no server listens there: connection refused"},
			{Name: "no such target", Def: def(target+"x", auth), Sudden: true, Class: errs.Remote, Text: "no such target"},
			{Name: "no such LUN", Def: def(target, auth+`,"lun":7`), Sudden: true, Class: errs.Remote, Text: "has no LUN 7"},
			{Name: "no authentication", Def: def(target, ""), Sudden: true, Class: errs.Remote, Text: "require authentication (auth)"},
			{Name: "scheduler", Def: def(target, auth+`,"scheduler":"nonesuch"`), Sudden: true, Class: errs.Invalid, Text: `set scheduler "nonesuch": this kernel has: `},
		},
	})
}

// hold has another process use the disk.
func hold(t *testing.T, status driver.Status) (holder string, release func()) {
	t.Helper()
	cmd := exec.Command("sh", "-c", "exec 3<$0; echo held; read _", status.Device.Path)
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	_, err = out.Read(make([]byte, 8))
	must(t, err)
	return fmt.Sprintf("pid %d (sh) has %s open", cmd.Process.Pid, status.Device.Path), func() {
		in.Close()
		_ = cmd.Wait()
	}
}
