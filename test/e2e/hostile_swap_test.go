package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// swapped exchanges a directory for a link again and again until the test ends or stop is called.
func swapped(t *testing.T, dir, link string) (stop func()) {
	t.Helper()
	end, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-end:
				done <- nil
				return
			default:
			}
			if err := unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE); err != nil {
				done <- err
				return
			}
		}
	}()
	stop = sync.OnceFunc(func() {
		close(end)
		if err := <-done; err != nil {
			t.Errorf("exchange %s and %s: %v", dir, link, err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// An image that exchanges a directory for a link to one of the node, all the time and while the server looks, does not lead it there:
// neither a loop device, nor a mount, nor a container's binds, directory or mountpoints.
func TestSwappedMeanwhile(t *testing.T) {
	t.Parallel()
	testkit.Root(t)
	victim := t.TempDir()
	must(t, os.WriteFile(filepath.Join(victim, "disk.img"), bytes.Repeat([]byte("node"), 1<<10), 0o600))
	s := newStudio(t, func(dir string) {
		must(t, os.MkdirAll(filepath.Join(dir, "d/deep"), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, "d/disk.img"), bytes.Repeat([]byte("here"), 1<<10), 0o600))
		must(t, os.Symlink(victim, filepath.Join(dir, "link")))
	})
	over := s.mount(t, overlay(mountID(s.base)))
	below := func(name string) string { return filepath.Join(over.Mountpoint, name) }
	must(t, os.Rename(below("d/disk.img"), below("disk.img"))) // a directory of a lower layer alone can't be renamed
	must(t, os.RemoveAll(below("d")))
	must(t, os.MkdirAll(below("d/deep"), 0o755))
	must(t, os.Rename(below("disk.img"), below("d/disk.img")))
	must(t, os.Remove(below("link")))
	must(t, os.Symlink(victim, below("link")))
	stop := swapped(t, below("d"), below("link"))
	came := map[string]int{}
	for range testkit.Rounds(40, 1000) {
		if a, made := s.tries(t, "/attach", loopbackIn(mountID(over.ID), "/d/disk.img")); made.ID != 0 {
			came["loop"]++
			content := make([]byte, 4)
			device, err := os.Open(made.DeviceFile)
			must(t, err)
			_, err = device.Read(content)
			must(t, err)
			device.Close()
			if string(content) != "here" {
				t.Fatalf("the loop device is over the node's file: %s", a)
			}
			s.remove(t, http.StatusOK, "/attach", models.ID(made.ID))
		}
		if a, made := s.tries(t, "/mount", bindIn(mountID(over.ID), "/d")); made.ID != 0 {
			came["bind"]++
			if content, err := os.ReadFile(filepath.Join(made.Mountpoint, "disk.img")); err != nil || !bytes.HasPrefix(content, []byte("here")) {
				t.Fatalf("the mount is of the node's directory: %v: %s", err, a)
			}
			s.remove(t, http.StatusOK, "/mount", models.ID(made.ID))
		}
		c := start("/bin/true", mountID(over.ID))
		c.WorkingDir = "/d"
		c.Binds = []*models.ContainerBind{{Source: to("/dev/null"), Target: to("/d/null")}, {Source: to("/dev"), Target: to("/d/new/dev")}}
		if _, made := s.tries(t, "/container", c); made.ID != 0 {
			came["container"]++
			s.remove(t, http.StatusOK, "/container", models.ID(made.ID), "&force=true")
		}
	}
	stop()
	if len(came) != 3 {
		t.Errorf("it never worked, so that the race was not tested: %v", came)
	}
	left, err := os.ReadDir(victim)
	if err != nil || len(left) != 1 {
		t.Errorf("in the node's directory there are %v, %v", left, err)
	}
}

// tries sends a definition that may be refused, but for no fault of the server.
func (n *node) tries(t *testing.T, path string, def any) (answer string, made object) {
	t.Helper()
	a, err := n.Do(t.Context(), http.MethodPost, path, def)
	must(t, err)
	answer = fmt.Sprintf("%d %s", a.Status, a.Body)
	switch a.Status {
	case http.StatusCreated:
		decode(t, a.Body, &made)
	case http.StatusUnprocessableEntity, http.StatusConflict:
	default:
		t.Errorf("%s: %s", path, answer)
	}
	return answer, made
}
