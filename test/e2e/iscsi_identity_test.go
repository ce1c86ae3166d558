package e2e

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// other makes another disk of the target, full of a pattern, and returns a function that tells whether not a byte of it has changed.
func (n iscsiNode) other(t *testing.T, disk int) (untouched func() bool) {
	t.Helper()
	file := n.target.Disk(disk)
	must(t, os.WriteFile(file, bytes.Repeat([]byte("another's volume"), 64<<20/16), 0o600))
	t.Cleanup(func() { os.Remove(file) })
	sum := func() [32]byte {
		text, err := os.ReadFile(file)
		must(t, err)
		return sha256.Sum256(text)
	}
	before := sum()
	return func() bool { return sum() == before }
}

// breaks waits until an attachment is broken for a reason.
func (n *node) breaks(t *testing.T, id models.ID, why string) {
	t.Helper()
	var all []models.Attach
	if !testkit.Settles(func() bool {
		n.Must(t, http.StatusOK, http.MethodGet, fmt.Sprintf("/attach?id=%d", id), nil, &all)
		return len(all) == 1 && all[0].Phase == "broken"
	}) {
		t.Fatalf("attachment %d is %s: %s", id, all[0].Phase, all[0].Error)
	}
	if !strings.Contains(all[0].Error, why) {
		t.Errorf("attachment %d is broken: %s; want %q", id, all[0].Error, why)
	}
}

// A unit that becomes another volume while its target is away gets nothing of what waits to be written.
func TestISCSIAnotherVolumeWhileAway(t *testing.T) { anotherVolume(t, false) }

// The same if the server is killed meanwhile.
func TestISCSIAnotherVolumeWhileKilled(t *testing.T) { anotherVolume(t, true) }

func anotherVolume(t *testing.T, killed bool) {
	t.Helper()
	target := newTarget(t, 2)
	n := iscsiNode{newRestartable(t), target}
	n.Stay()
	n.Stop(t)
	n.Again(t)
	n.ext4(t, 1, t.TempDir())
	untouched := n.other(t, 2)
	a, beside := n.attach(t, n.lun(1)), n.attach(t, n.lun(0))
	m := n.mount(t, device(attachID(a.ID), "ext4"))
	file, err := os.Create(filepath.Join(m.Mountpoint, "written"))
	must(t, err)
	defer file.Close()
	if killed {
		n.Kill(t)
	}
	target.Stop(t)
	written := make(chan error, 1)
	_, err = file.WriteString("what was meant for the old volume\n")
	must(t, err)
	go func() { written <- file.Sync() }()
	target.StartWith(t, "-l", "1")
	must(t, os.MkdirAll(lunDir(target, 1), 0o755))
	target.Link(t, 1, 2)
	if killed {
		n.Again(t)
	}
	if err := <-written; err == nil {
		t.Error("the write succeeded")
	}
	n.breaks(t, a.ID, "is another volume now")
	if got := n.get(t, "/attach", int64(beside.ID)); got.Phase != "ready" {
		t.Errorf("the unit beside it is %+v", got)
	}
	file.Close()
	answer := n.remove(t, http.StatusOK, "/mount", m.ID)
	n.warns(t, answer.Header, "could be saved")
	answer = n.remove(t, http.StatusOK, "/attach", a.ID)
	n.warns(t, answer.Header, "another volume")
	n.remove(t, http.StatusOK, "/attach", beside.ID)
	if !untouched() {
		t.Error("the other volume was written to")
	}
}

func lunDir(target *testkit.Target, lun int) string {
	return fmt.Sprintf("/sys/kernel/config/target/iscsi/%s/tpgt_1/lun/lun_%d", target.IQN, lun)
}

// warns fails the test unless an answer warns of something.
func (n *node) warns(t *testing.T, h http.Header, want string) {
	t.Helper()
	if got := strings.Join(h.Values("Warning"), "\n"); !strings.Contains(got, want) {
		t.Errorf("warnings %q; want %q", got, want)
	}
}

// A unit that becomes another volume while I/O flows is noticed, and nothing reaches that volume from then on.
func TestISCSIAnotherVolumeLive(t *testing.T) {
	n := newISCSINode(t, 2)
	n.other(t, 2)
	a := n.attach(t, n.lun(1))
	n.target.Link(t, 1, 2)
	n.breaks(t, a.ID, "is another volume now")
	file, err := os.OpenFile(a.DeviceFile, os.O_RDWR, 0)
	if err == nil {
		_, err = file.Write(make([]byte, 4096))
		if err == nil {
			err = file.Sync()
		}
		file.Close()
	}
	if err == nil {
		t.Error("the other volume can be written to")
	}
	answer := n.remove(t, http.StatusOK, "/attach", a.ID)
	n.warns(t, answer.Header, "another volume")
	fresh := n.attach(t, n.lun(1)) // what is there now can be attached
	n.remove(t, http.StatusOK, "/attach", fresh.ID)
}

// A unit that grew is used at its new size; one that shrank is broken.
func TestISCSIResized(t *testing.T) {
	n := newISCSINode(t, 1)
	a := n.attach(t, n.lun(0))
	size := func() string {
		text, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(a.DeviceFile), "size"))
		must(t, err)
		return strings.TrimSpace(string(text))
	}
	n.target.Stop(t)
	n.target.StartWith(t, "-s", "80")
	testkit.Eventually(t, "it is 80 MiB", func() bool { return size() == fmt.Sprint(80<<20/512) })
	n.target.Stop(t)
	n.target.StartWith(t, "-s", "48")
	n.breaks(t, a.ID, "shrank from 83886080 to 50331648 bytes")
	n.remove(t, http.StatusOK, "/attach", a.ID)
}

// A mount whose target is gone for good is removed by force, with its attachment, long before I/O fails by itself.
func TestISCSIForcedMount(t *testing.T) {
	n := newISCSINode(t, 2)
	n.ext4(t, 0, t.TempDir())
	beside := n.attach(t, n.lun(1))
	m := n.mount(t, device(n.lun(0), "ext4"))
	must(t, os.WriteFile(filepath.Join(m.Mountpoint, "unsaved"), make([]byte, 1<<20), 0o600))
	n.target.Stop(t)
	began := time.Now()
	answer := n.remove(t, http.StatusOK, "/mount", m.ID, "&force=true")
	t.Logf("after %v: %s", time.Since(began), answer.Body)
	n.warns(t, answer.Header, "by force")
	if left := n.list(t, "/attach"); len(left) != 1 || left[0].ID != int64(beside.ID) {
		t.Errorf("left: %+v", left)
	}
	n.remove(t, http.StatusOK, "/attach", beside.ID, "&force=true")
	n.target.Start(t)
}

// A forced delete of what was stopping already shows the object as it was before, and not why the delete before it failed.
func TestISCSIForcedAfterFailure(t *testing.T) {
	n := newISCSINode(t, 1, "--delete-timeout", "2s")
	a := n.attach(t, n.lun(0))
	n.target.Stop(t)
	n.remove(t, http.StatusGatewayTimeout, "/attach", a.ID)
	answer := n.remove(t, http.StatusOK, "/attach", a.ID, "&force=true")
	var gone object
	decode(t, answer.Body, &gone)
	if gone.Phase != "ready" || gone.Error != "" {
		t.Errorf("it is answered as %s", answer.Body)
	}
	n.target.Start(t)
}

// What a target lacks, or does not allow, is said in plain words.
func TestISCSIPlain(t *testing.T) {
	n := newISCSINode(t, 1)
	demand := func(a *models.AttachIscsi) { a.HeaderDigest, a.DataDigest = to("crc32c"), to("crc32c") }
	a := n.attach(t, n.lun(0, demand))
	if *a.Iscsi.HeaderDigest != "crc32c" || *a.Iscsi.DataDigest != "crc32c" {
		t.Errorf("digests are answered as %s, %s", *a.Iscsi.HeaderDigest, *a.Iscsi.DataDigest)
	}
	n.target.Stop(t) // the identity is compared with digests, too
	n.target.Start(t)
	testkit.Eventually(t, "it is logged in again", func() bool { return strings.Contains(n.Log(), "iSCSI session recovered") })
	n.remove(t, http.StatusOK, "/attach", a.ID)

	n.target.Stop(t)
	n.target.StartWith(t, "-d", "-w")
	answer := n.Must(t, http.StatusBadGateway, http.MethodPost, "/attach", n.lun(0, demand), nil)
	if want := "does not support the required digests (header_digest, data_digest)"; !strings.Contains(answer.Message(), want) {
		t.Errorf("a digest that is missing: %s; want %q", answer.Message(), want)
	}
	answer = n.Must(t, http.StatusCreated, http.MethodPost, "/attach", n.lun(0), &a)
	n.warns(t, answer.Header, "write-protected")
	n.remove(t, http.StatusOK, "/attach", a.ID)
}

// A volume that the target shows under two numbers is attached for writing once.
func TestISCSISameVolumeTwice(t *testing.T) {
	n := newISCSINode(t, 2)
	n.target.Link(t, 1, 0)
	a := n.attach(t, n.lun(0))
	answer := n.Must(t, http.StatusConflict, http.MethodPost, "/attach", n.lun(1), nil)
	if want := "as " + a.DeviceFile + " of this node"; !strings.Contains(answer.Message(), want) {
		t.Errorf("%s; want %q", answer.Message(), want)
	}
	reads := n.attach(t, n.lun(1, unwritten))
	n.remove(t, http.StatusOK, "/attach", a.ID)
	writes := n.attach(t, n.lun(0)) // nothing but a reader is left
	n.remove(t, http.StatusOK, "/attach", reads.ID)
	n.remove(t, http.StatusOK, "/attach", writes.ID)
}
