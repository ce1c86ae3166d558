package e2e

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// A writable image is mounted through one device only. A second one would destroy it, and the kernel allows that.
func TestWritableImageIsMountedOnce(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "ext4")
	for name, end := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newRestartable(t)
			n.Stay()
			n.Stop(t)
			n.Again(t)
			image := testkit.Ext4(t, testkit.Busybox(t))
			link := filepath.Join(filepath.Dir(image), "another-name")
			must(t, os.Link(image, link))
			def := func(path string, options ...string) *models.Mount { return device(loopback(path), "ext4", options...) }
			refused := func(m *models.Mount) {
				t.Helper()
				if got := n.refused(t, http.StatusConflict, m); !strings.Contains(got, "has the same image mounted by way of another device") {
					t.Errorf("it says %s", got)
				}
			}

			// Of many creates at once, one succeeds.
			var mu sync.Mutex
			var made []models.Mount
			var all sync.WaitGroup
			for range 8 {
				all.Go(func() {
					var m models.Mount
					got, err := n.Do(t.Context(), http.MethodPost, "/mount", def(image))
					mu.Lock()
					defer mu.Unlock()
					switch {
					case err == nil && got.Status == http.StatusCreated && m.UnmarshalBinary(got.Body) == nil:
						made = append(made, m)
					case err != nil || got.Status != http.StatusConflict:
						t.Errorf("%d %s, %v", got.Status, got.Body, err)
					}
				})
			}
			all.Wait()
			if len(made) != 1 {
				t.Fatalf("%d of 8 were made", len(made))
			}
			for range 2 { // by the same server and by a later one
				refused(def(image))
				refused(def(link, "ro"))
				end(t, n)
				n.Again(t)
			}
			by := n.mount(t, device(attachID(made[0].Attach.Attach.ID), "ext4")) // the same device may be mounted again
			n.remove(t, http.StatusOK, "/mount", by.ID)
			n.remove(t, http.StatusOK, "/mount", made[0].ID)

			readers := []models.Mount{n.mount(t, def(image, "ro")), n.mount(t, def(link, "ro"))}
			refused(def(image))
			for _, m := range readers {
				n.remove(t, http.StatusOK, "/mount", m.ID)
			}
			n.remove(t, http.StatusOK, "/mount", n.mount(t, def(image)).ID)
		})
	}
}
