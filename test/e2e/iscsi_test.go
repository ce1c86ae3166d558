package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// iscsiNode is a node with an iSCSI target.
type iscsiNode struct {
	*node
	target *testkit.Target
}

const (
	chapSecret   = "canary-of-the-node"
	targetSecret = "canary-of-the-target"
)

func newISCSINode(t *testing.T, luns int, flags ...string) iscsiNode {
	t.Helper()
	target := newTarget(t, luns)
	return iscsiNode{newNode(t, flags...), target}
}

// newTarget also proves that no session and no SCSI device stays.
func newTarget(t *testing.T, luns int) *testkit.Target {
	t.Helper()
	target := testkit.StartTarget(t, strings.ToLower(t.Name()), "-l", fmt.Sprint(luns), "-c", "node:"+chapSecret, "-m", "target:"+targetSecret)
	t.Cleanup(func() {
		testkit.Eventually(t, "no session is left", func() bool {
			sessions, _ := filepath.Glob("/sys/class/iscsi_*/[sc]*")
			devices, _ := filepath.Glob("/sys/class/scsi_device/*")
			return len(sessions)+len(devices) == 0
		})
	})
	return target
}

// lun is an attachment of a logical unit; change may alter it.
func (n iscsiNode) lun(lun int64, change ...func(*models.AttachIscsi)) *models.Attach {
	a := &models.AttachIscsi{
		Initiator: to("iqn.2026-05.org.example:node"), Target: &n.target.IQN, Host: to("localhost"), Lun: lun,
		Auth: &models.IscsiAuth{Username: "node", Secret: to(chapSecret), TargetUsername: "target", TargetSecret: to(targetSecret)},
	}
	for _, c := range change {
		c(a)
	}
	return &models.Attach{Kind: "iscsi", Iscsi: a}
}

func unwritten(a *models.AttachIscsi) { a.Ro = to(true) }

// ext4 makes a file system with the content of dir on a logical unit.
func (n iscsiNode) ext4(t *testing.T, lun int64, dir string) {
	t.Helper()
	a := n.attach(t, n.lun(lun))
	testkit.Run(t, "mkfs.ext4", "-q", "-F", "-d", dir, a.DeviceFile)
	n.remove(t, http.StatusOK, "/attach", a.ID)
}

func (n iscsiNode) says(t *testing.T, c models.Container) string {
	t.Helper()
	text, err := os.ReadFile(c.Logfile)
	must(t, err)
	return string(text)
}

// A disk that a container writes to keeps what was written.
func TestISCSIWritable(t *testing.T) {
	n := newISCSINode(t, 1)
	n.ext4(t, 0, testkit.Busybox(t))
	c := n.create(t, start(`/bin/sh -c "echo kept >/file && echo wrote"`, device(n.lun(0), "ext4")))
	c = n.reaches(t, c.ID, models.ContainerStateExited)
	if got := n.says(t, c); got != "wrote\n" {
		t.Errorf("it says %q", got)
	}
	if a := c.Mount.Attach.Attach; a.Iscsi.SessionState != "logged_in" || a.Iscsi.Auth.Secret != nil || a.DeviceFile == "" {
		t.Errorf("the attachment is answered as %+v, %+v", a, a.Iscsi)
	}
	n.remove(t, http.StatusOK, "/container", c.ID)
	if left := n.everything(t.Context(), t); left != "[] [] []" {
		t.Errorf("left: %s", left)
	}
	c = n.create(t, start(`/bin/cat /file`, device(n.lun(0, unwritten), "ext4", "ro")))
	c = n.reaches(t, c.ID, models.ContainerStateExited)
	if got := n.says(t, c); got != "kept\n" {
		t.Errorf("it says %q", got)
	}
	n.remove(t, http.StatusOK, "/container", c.ID)
}

// Two containers write on top of one read-only image.
func TestISCSIShared(t *testing.T) {
	n := newISCSINode(t, 1)
	w := n.attach(t, n.lun(0))
	testkit.Run(t, "dd", "if="+n.image, "of="+w.DeviceFile, "bs=1M", "oflag=direct", "conv=sync", "status=none")
	n.remove(t, http.StatusOK, "/attach", w.ID)

	base := n.mount(t, device(n.lun(0, unwritten), "squashfs"))
	var both []models.Container
	for i := range 2 {
		both = append(both, n.create(t, start(fmt.Sprintf(`/bin/sh -c "echo %d >/own; cat /own; exec sleep 1000"`, i), overlay(mountID(base.ID)))))
	}
	for i, c := range both {
		if !testkit.Settles(func() bool { return n.says(t, c) == fmt.Sprintf("%d\n", i) }) {
			t.Errorf("container %d says %q", i, n.says(t, c))
		}
	}
	n.remove(t, http.StatusConflict, "/mount", base.ID)
	for _, c := range both {
		n.remove(t, http.StatusOK, "/container", c.ID, "&force=true")
	}
	n.remove(t, http.StatusOK, "/mount", base.ID)
	if left := n.everything(t.Context(), t); left != "[] [] []" {
		t.Errorf("left: %s", left)
	}
}

// Container, overlay, bind, attach, loopback, attach, iSCSI: one request up, one down.
func TestISCSIDeep(t *testing.T) {
	n := newISCSINode(t, 1)
	disk := t.TempDir()
	testkit.Run(t, "cp", n.image, filepath.Join(disk, "app.squashfs"))
	n.ext4(t, 0, disk)
	before := testkit.Snapshot(t, n.Scope(filepath.Dir(n.image)))
	c := n.create(t, start(`/bin/sh -c "echo up >/file; cat /file; exec sleep 1000"`,
		overlay(bindIn(device(loopbackIn(device(n.lun(0), "ext4"), "/app.squashfs"), "squashfs"), "/"))))
	if !testkit.Settles(func() bool { return n.says(t, c) == "up\n" }) {
		t.Errorf("it says %q", n.says(t, c))
	}
	n.remove(t, http.StatusOK, "/container", c.ID, "&force=true")
	if left := n.everything(t.Context(), t); left != "[] [] []" {
		t.Errorf("left: %s", left)
	}
	before.Same(t)
}

func TestISCSIParallel(t *testing.T) {
	n := newISCSINode(t, 8)
	var group sync.WaitGroup
	made := make([]models.Attach, 8)
	for i := range made {
		group.Go(func() {
			answer, err := n.Do(t.Context(), http.MethodPost, "/attach", n.lun(int64(i)))
			if err != nil || answer.Status != http.StatusCreated {
				t.Errorf("attach LUN %d: %d %s (%v)", i, answer.Status, answer.Body, err)
				return
			}
			decode(t, answer.Body, &made[i])
		})
	}
	group.Wait()
	if found, _ := filepath.Glob("/sys/class/iscsi_session/session*"); len(found) != 1 {
		t.Errorf("sessions %q, want one", found)
	}
	for i, a := range made {
		if a.ID == 0 {
			continue
		}
		serial, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(a.DeviceFile), "device/vpd_pg80"))
		if err != nil || !strings.HasSuffix(strings.TrimRight(string(serial), "\x00 "), fmt.Sprintf("-%d", i)) {
			t.Errorf("LUN %d is a disk with the serial number %q, %v", i, serial, err)
		}
		n.remove(t, http.StatusOK, "/attach", a.ID)
	}
}

// A disk in use stays with its dependencies, and the error names the holder.
func TestISCSIBusy(t *testing.T) {
	n := newISCSINode(t, 1)
	a := n.attach(t, n.lun(0))
	holder, err := os.Open(a.DeviceFile)
	must(t, err)
	defer holder.Close()
	got := n.remove(t, http.StatusConflict, "/attach", a.ID).Message()
	if want := fmt.Sprintf("pid %d (", os.Getpid()); !strings.Contains(got, want) || !strings.Contains(got, a.DeviceFile+" open") {
		t.Errorf("%s; want %q", got, want)
	}
	if _, err := holder.ReadAt(make([]byte, 4096), 0); err != nil {
		t.Error(err)
	}
	holder.Close()
	n.remove(t, http.StatusOK, "/attach", a.ID)
}

// A container that writes goes on when its target was away, and the object shows that it was; who listens to events is told.
func TestISCSIRecovers(t *testing.T) {
	n := newISCSINode(t, 1)
	n.ext4(t, 0, testkit.Busybox(t))
	c := n.create(t, start(`/bin/sh -c "i=0; while echo \$((i+=1)) >/count && sync /count && echo \$i; do sleep 0.2; done; echo failed"`, device(n.lun(0), "ext4")))
	flows := func() {
		t.Helper()
		before := len(n.says(t, c))
		testkit.Eventually(t, "it writes", func() bool { return len(n.says(t, c)) > before+4 })
	}
	state := func(want string) {
		t.Helper()
		var all []models.Attach
		if !testkit.Settles(func() bool {
			n.Must(t, http.StatusOK, http.MethodGet, "/attach", nil, &all)
			return len(all) == 1 && all[0].Iscsi.SessionState == want
		}) {
			t.Fatalf("the session is %q, not %q", all[0].Iscsi.SessionState, want)
		}
	}
	told := n.listen(t.Context(), t, "class=attach", "")
	flows()
	for _, step := range []struct {
		act  func(testing.TB)
		want string
	}{{n.target.Stop, "recovering"}, {n.target.Start, "logged_in"}} {
		step.act(t)
		state(step.want)
		for now := ""; now != step.want; {
			now, _ = told.until(t, "changed", "").Shown["iscsi"].(map[string]any)["session_state"].(string)
		}
	}
	flows()
	if strings.Contains(n.says(t, c), "failed") {
		t.Error("a write failed")
	}
	n.remove(t, http.StatusOK, "/container", c.ID, "&force=true")
}

// A server that recovers a session whose connection was lost while there was none logs in again, with the secrets: who writes
// goes on.
func TestISCSISurvivesRestarts(t *testing.T) {
	target := newTarget(t, 1)
	n := iscsiNode{newRestartable(t), target}
	n.Stay()
	n.Stop(t)
	n.Again(t)
	n.ext4(t, 0, t.TempDir())
	m := n.mount(t, device(n.lun(0), "ext4"))
	file, err := os.Create(filepath.Join(m.Mountpoint, "written"))
	must(t, err)
	defer file.Close()
	for name, end := range ways {
		end(t, n.node)
		target.Stop(t)
		n.Again(t)
		written := make(chan error, 1)
		go func() {
			_, err := file.WriteString(name + "\n")
			written <- errors.Join(err, file.Sync())
		}()
		target.Start(t)
		if err := <-written; err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(t, file.Close())
	n.Kill(t)
	n.Again(t)
	n.remove(t, http.StatusOK, "/mount", m.ID)
	if kept, _ := filepath.Glob(filepath.Join(n.RunDir, "mounts", "*")); len(kept) > 0 {
		t.Errorf("left: %q", kept)
	}
}

// When the target is gone a delete answers in time and keeps what may not be lost; a forced one does not.
func TestISCSITargetGone(t *testing.T) {
	n := newISCSINode(t, 2, "--delete-timeout", "4s")
	one, two := n.attach(t, n.lun(0)), n.attach(t, n.lun(1, unwritten))
	n.target.Stop(t)
	testkit.Eventually(t, "it is noticed", func() bool {
		var all []models.Attach
		n.Must(t, http.StatusOK, http.MethodGet, "/attach", nil, &all)
		return all[0].Iscsi.SessionState == "recovering"
	})
	began := time.Now()
	answer, err := n.Do(t.Context(), http.MethodDelete, fmt.Sprintf("/attach?id=%d", one.ID), nil)
	must(t, err)
	t.Logf("%v: %d %s", time.Since(began), answer.Status, answer.Body)
	if late := time.Since(began) - 4*time.Second; late > slack || answer.Status != http.StatusGatewayTimeout {
		t.Errorf("the delete was answered %d %s, %v late", answer.Status, answer.Body, late)
	}
	forced := n.Must(t, http.StatusOK, http.MethodDelete, fmt.Sprintf("/attach?id=%d&force=true", one.ID), nil, nil)
	if warnings := strings.Join(forced.Header.Values("Warning"), "\n"); !strings.Contains(warnings, "is lost") {
		t.Errorf("warnings: %s", warnings)
	}
	n.remove(t, http.StatusOK, "/attach", two.ID) // nothing was written: nothing can be lost
	if left := n.everything(t.Context(), t); left != "[] [] []" {
		t.Errorf("left: %s", left)
	}
	n.target.Start(t)
}

// What is wrong with a request, and that secrets are in no answer, log, journal, command line or attribute.
func TestISCSIAnswers(t *testing.T) {
	n := newISCSINode(t, 1, "--log-level", "debug")
	var a models.Attach
	answer := n.Must(t, http.StatusCreated, http.MethodPost, "/attach", n.lun(0), &a)
	places := map[string]string{"answer": string(answer.Body)}
	echo := n.Must(t, http.StatusUnprocessableEntity, http.MethodPost, "/attach", answer.Body, nil)
	for _, want := range []string{"attach.iscsi.auth.secret: is required", "attach.iscsi.auth.target_secret: is required"} {
		if !strings.Contains(echo.Message(), want) {
			t.Errorf("an echo: %s; want %q", echo.Message(), want)
		}
	}
	again := n.Must(t, http.StatusConflict, http.MethodPost, "/attach", n.lun(0), nil)
	if want := fmt.Sprintf("attachment %d has this LUN already", a.ID); !strings.Contains(again.Message(), want) {
		t.Errorf("the same again: %s; want %q", again.Message(), want)
	}
	wrong := n.Must(t, http.StatusBadGateway, http.MethodPost, "/attach", n.lun(0, func(a *models.AttachIscsi) {
		a.Initiator, a.Auth.Secret = to("iqn.2026-05.org.example:other"), to("canary-that-is-wrong")
	}), nil)
	places["wrong secret"] = string(wrong.Body)
	if !strings.Contains(wrong.Message(), "auth.secret") {
		t.Errorf("a wrong secret: %s", wrong.Message())
	}
	places["log"] = n.Log()
	for _, pattern := range []string{"/proc/[0-9]*/cmdline", n.RunDir + "/*", "/sys/class/iscsi_session/*/*", "/sys/class/iscsi_connection/*/*"} {
		files, _ := filepath.Glob(pattern)
		for _, file := range files {
			if text, err := os.ReadFile(file); err == nil {
				places[file] = string(text)
			}
		}
	}
	for where, text := range places {
		if strings.Contains(text, "canary-") {
			t.Errorf("%s gives a secret away", where)
		}
	}
	if places[n.RunDir+"/journal.db"] == "" {
		t.Error("the journal was not searched")
	}
	n.remove(t, http.StatusOK, "/attach", a.ID)
}
