package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// keepers returns the pids of the keepers of a server, by the group that they are in.
func (n *node) keepers(t *testing.T) (pids []string) {
	t.Helper()
	files, _ := filepath.Glob("/proc/[0-9]*/cgroup")
	for _, file := range files {
		if text, _ := os.ReadFile(file); strings.Contains(string(text), n.Cgroup+"/keepers\n") {
			pids = append(pids, filepath.Base(filepath.Dir(file)))
		}
	}
	slices.Sort(pids)
	return pids
}

func (n *node) killKeeper(t *testing.T) {
	t.Helper()
	pids := n.keepers(t)
	if len(pids) != 1 {
		t.Fatalf("keepers: %q", pids)
	}
	pid, err := strconv.Atoi(pids[0])
	must(t, err)
	must(t, unix.Kill(pid, unix.SIGKILL))
}

// TestImageOnDemand runs a container from an image that stays on its web server. Neither the end of the server nor that of the keeper, nor
// both, stops its reads, and no secret is to be seen.
func TestImageOnDemand(t *testing.T) {
	testkit.Guest(t)
	n := newRestartable(t)
	site, _ := newSite(t)
	var c models.Container
	answer := n.Must(t, http.StatusCreated, http.MethodPost, "/container", &models.Container{
		Name: "web", State: "running", Command: to("/bin/sleep 1000"),
		Mount: overlay(device(webImage(site.URL+"/private/app.squashfs?signature=canary-query", func(h *models.AttachHTTP) {
			h.Auth = &models.RemoteAuth{User: "reader", Password: to("canary-password")}
		}), "squashfs")),
	}, &c)
	h := c.Mount.Overlay.Lower[0].Attach.Attach.HTTP
	if *h.Mode != models.AttachHTTPModeOnDemand || h.Size == 0 || h.URL != site.URL+"/private/app.squashfs" {
		t.Errorf("the attachment: %+v", h)
	}
	image, err := os.ReadFile(testkit.BusyboxImage(t))
	must(t, err)
	works := func() {
		t.Helper()
		must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
		if got := n.sh(t, c.ID, "cat /bin/busybox | wc -c"); strings.TrimSpace(got) == "0" || got == "" {
			t.Errorf("the program has %s bytes", got)
		}
		file, err := os.ReadFile(c.Mount.Overlay.Lower[0].Attach.Attach.DeviceFile)
		if err != nil || string(file[:len(image)]) != string(image) {
			t.Errorf("the device has other bytes: %v", err)
		}
	}
	works()
	before := n.keepers(t)
	n.Kill(t)
	n.Again(t)
	works()
	if now := n.keepers(t); !slices.Equal(before, now) {
		t.Errorf("the keeper %q became %q", before, now)
	}
	n.killKeeper(t)
	works()
	n.Kill(t)
	n.killKeeper(t)
	n.Launch(t) // Again takes the connection to another keeper for one that stays open
	testkit.Eventually(t, "the server answers", func() bool {
		_, err := n.Do(t.Context(), http.MethodGet, "/attach", nil)
		return err == nil
	})
	works()
	if state := n.named(t, "web").State; state != "running" {
		t.Errorf("the container is %s", state)
	}
	list, err := n.Do(t.Context(), http.MethodGet, "/attach", nil)
	must(t, err)
	seen := string(answer.Body) + string(list.Body) + n.Log()
	files, _ := filepath.Glob("/proc/[0-9]*/*")
	files = slices.DeleteFunc(files, func(f string) bool { return !strings.HasSuffix(f, "/cmdline") && !strings.HasSuffix(f, "/environ") })
	for _, name := range append(files, filepath.Join(n.RunDir, "journal.db")) {
		data, _ := os.ReadFile(name)
		seen += string(data)
	}
	if strings.Contains(seen, "canary") {
		t.Errorf("a secret is in:\n%s", seen)
	}
	n.Must(t, http.StatusOK, http.MethodDelete, "/container?name=web&force=true", nil, nil)
	if left := n.keepers(t); len(left) > 0 {
		t.Errorf("keepers are left: %q", left)
	}
	if left, _ := filepath.Glob("/sys/block/nbd*/pid"); len(left) > 0 {
		t.Errorf("devices are left: %q", left)
	}
	if _, err := os.Stat(filepath.Join(n.RunDir, "keepers")); err == nil {
		t.Error("the directory of the keepers is left")
	}
}

// TestImageOnDemandBelow: verity stands on an image that is read on demand, also when its keeper is replaced.
func TestImageOnDemandBelow(t *testing.T) {
	testkit.Guest(t)
	n := newRestartable(t) // the keepers' cgroup and their program stay until the server ends, as those of the supervisors do
	root := t.TempDir()
	must(t, os.Chmod(root, 0o755))
	s := seal(t, "squashfs", false)
	image, err := os.ReadFile(s.path)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(root, "sealed"), image, 0o644))
	site := testkit.StartNginx(t, root)
	onDemand := func(h *models.AttachHTTP) { h.Mode = to(models.AttachHTTPModeOnDemand) }
	var c models.Container
	n.Must(t, http.StatusCreated, http.MethodPost, "/container", sleeper("verity", device(s.over(webImage(site.URL+"/sealed", onDemand)), "squashfs")), &c)
	n.killKeeper(t)
	must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
	if got := n.sh(t, c.ID, "cat /good | wc -c"); strings.TrimSpace(got) != strconv.Itoa(len(s.good)) {
		t.Errorf("the file has %q bytes", got)
	}
	n.Must(t, http.StatusOK, http.MethodDelete, "/container?force=true&name=verity", nil, nil)
}

func sleeper(name string, m *models.Mount) *models.Container {
	return &models.Container{Name: models.Name(name), State: "running", Command: to("/bin/sleep 1000"), Mount: overlay(m)}
}

// TestImageOnDemandForcedDelete: a container above an image whose web server refuses, and whose process waits for a part of it, is gone after a forced
// deletion, with all that is below it.
func TestImageOnDemandForcedDelete(t *testing.T) {
	testkit.Guest(t)
	n := newRestartable(t)
	root := testkit.Busybox(t)
	const larger = 48 << 20 // than all that a keeper keeps
	big := make([]byte, larger)
	_, _ = rand.NewChaCha8([32]byte{}).Read(big)
	must(t, os.WriteFile(filepath.Join(root, "big"), big, 0o644))
	image, err := os.ReadFile(testkit.Squashfs(t, root))
	must(t, err)
	var silent atomic.Bool
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if silent.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("ETag", `"one"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(image))
	}))
	t.Cleanup(server.Close)
	var c models.Container
	onDemand := func(h *models.AttachHTTP) { h.Mode = to(models.AttachHTTPModeOnDemand) }
	n.Must(t, http.StatusCreated, http.MethodPost, "/container", sleeper("stuck", device(webImage(server.URL+"/image", onDemand), "squashfs")), &c)
	n.sh(t, c.ID, "true") // the shell is in memory
	silent.Store(true)
	read := make(chan struct{})
	go func() {
		defer close(read)
		_, _ = n.Do(t.Context(), http.MethodPost, fmt.Sprintf("/container/exec?id=%d", c.ID), &models.ContainerCommand{Args: []string{"/bin/cat", "/big"}, Timeout: 300})
	}()
	testkit.Eventually(t, "the image is waited for", func() bool {
		var list []models.Attach
		n.Must(t, http.StatusOK, http.MethodGet, "/attach", nil, &list)
		return len(list) == 1 && list[0].WaitsFor != ""
	})
	began := time.Now()
	n.Must(t, http.StatusOK, http.MethodDelete, "/container?name=stuck&force=true", nil, nil)
	testkit.Eventually(t, "all is gone", func() bool { return n.everything(t.Context(), t) == "[] [] []" && len(n.keepers(t)) == 0 })
	t.Logf("it took %v", time.Since(began))
	<-read
	if left, _ := filepath.Glob("/sys/block/nbd*/pid"); len(left) > 0 {
		t.Errorf("devices are left: %q", left)
	}
}
