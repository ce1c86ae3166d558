package e2e

import (
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// loaded returns the modules that the kernel has loaded.
func loaded(t *testing.T) (names []string) {
	t.Helper()
	table, err := os.ReadFile("/proc/modules")
	must(t, err)
	for line := range strings.Lines(string(table)) {
		name, _, _ := strings.Cut(line, " ")
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// foretoldAll makes what is defined, one after the other, each foretold, and takes it away again. The first plan loads no module.
func foretoldAll(t *testing.T, n *node, defs map[string]any) {
	t.Helper()
	probe := n.mount(t, bind("/etc")) // tells which ids are used already
	n.remove(t, http.StatusOK, "/mount", probe.ID)
	f := &foreteller{node: n, last: int64(probe.ID)}
	before := loaded(t)
	for _, def := range defs {
		n.plan(t, def)
	}
	if after := loaded(t); !slices.Equal(after, before) {
		t.Errorf("dry runs have loaded modules: there were %q, there are %q", before, after)
	}
	there := n.everything(t.Context(), t)
	for name, def := range defs {
		t.Run(name, func(t *testing.T) {
			n.remove(t, http.StatusOK, resourceOf(def), f.foretold(t, def), "&force=true")
			testkit.Eventually(t, "what was made is gone", func() bool { return n.everything(t.Context(), t) == there })
		})
	}
}

// unknown returns all that a plan leaves open.
func unknown(p models.Plan) string {
	var all []string
	for _, s := range p.Steps {
		all = append(all, s.Unknown...)
	}
	return strings.Join(all, "; ")
}

func TestNFSDryRun(t *testing.T) {
	n := newNFSNode(t, tells...)
	base := n.mount(t, nfs(n.dir, onlyRead))
	foretoldAll(t, n.node, map[string]any{
		"nfs":       nfs(n.dir),
		"version 3": nfs(n.dir, func(d *models.MountNfs) { d.Version = to("3") }),
		"image":     squashIn(nfs(n.dir, onlyRead), "image"),
		"by id":     squashIn(mountID(base.ID), "image"),
		"container": start(forever, overlay(bindIn(nfs(n.dir, onlyRead), "root"))),
	})
	n.refused(t, http.StatusUnprocessableEntity, loopbackIn(mountID(base.ID), "none"))
	n.refused(t, http.StatusUnprocessableEntity, bindIn(mountID(base.ID), "image"))

	// A server that does not answer is not waited for.
	pass := testkit.DropNFS(t)
	defer pass()
	begun := time.Now()
	var p models.Plan
	n.Must(t, http.StatusOK, http.MethodPost, "/attach/plan", loopbackIn(mountID(base.ID), "never-looked-at"), &p)
	if took := time.Since(begun); took > 15*time.Second || !strings.Contains(unknown(p), "to look took longer than 5s") {
		t.Errorf("after %s unknown is %q", took, unknown(p))
	}
	n.Must(t, http.StatusOK, http.MethodPost, "/mount/plan", nfs(n.dir), &p)
	if !strings.Contains(unknown(p), "whether the server answers") {
		t.Errorf("unknown is %q", unknown(p))
	}
}

func squashIn(m *models.Mount, path string) *models.Mount {
	return device(loopbackIn(m, path), "squashfs")
}

func TestISCSIDryRun(t *testing.T) {
	n := newISCSINode(t, 2, tells...)
	foretoldAll(t, n.node, map[string]any{"unit": n.lun(0), "read-only": n.lun(1, unwritten)})
	n.ext4(t, 0, testkit.Busybox(t))
	foretoldAll(t, n.node, map[string]any{
		"mount":     device(n.lun(0), "ext4"),
		"container": start(forever, overlay(device(n.lun(0, unwritten), "ext4"))),
	})
	used := n.attach(t, n.lun(0))
	for text, def := range map[string]*models.Attach{
		fmt.Sprintf("attachment %d has this LUN", used.ID): n.lun(0),
		"other values of: max_comands":                     n.lun(1, func(a *models.AttachIscsi) { a.MaxComands = to(int64(64)) }),
	} {
		if said := n.refused(t, http.StatusConflict, def); !strings.Contains(said, text) {
			t.Errorf("%q lacks %q", said, text)
		}
	}
	n.refused(t, http.StatusUnprocessableEntity, n.lun(1, func(a *models.AttachIscsi) { a.Auth.Secret, a.Auth.SecretFile = nil, "/nowhere" }))
}

func TestRBDDryRun(t *testing.T) {
	n := newCephNode(t, tells...)
	n.Image(t, "plain")
	foretoldAll(t, n.node, map[string]any{"image": n.rbd("plain"), "read-only": n.rbd("plain", readOnly)})
	n.ext4Image(t, "files")
	foretoldAll(t, n.node, map[string]any{
		"mount":     device(n.rbd("files"), "ext4"),
		"container": start(forever, overlay(device(n.rbd("files", readOnly), "ext4", "noload"))),
	})
	n.refused(t, http.StatusUnprocessableEntity, n.rbd("plain", func(r *models.AttachRbd) { r.Options.Secret, r.Options.SecretFile = nil, "/nowhere" }))
}
