package docs

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/test/harness"
)

// limit bounds the commands of one page.
const limit = 3 * time.Minute

// mark separates what the commands of a page print. It is a control character that none of them prints.
const mark = "\x1e"

// Marks of pages whose commands need a Ceph cluster, an NFS server, or a kernel with a target or verity. They run in the guest of test/vm
// only. Pages that fetch packages of Debian do not run there, because the guest has no network. Pages with limits run where cgroup v2 has
// the controllers.
const (
	needsCeph        = "<!-- test: ceph -->"
	needsNFS         = "<!-- test: nfs -->"
	needsISCSI       = "<!-- test: iscsi -->"
	needsDebian      = "<!-- test: debian -->"
	needsControllers = "<!-- test: controllers -->"
	needsVerity      = "<!-- test: verity -->"
	needsRegistry    = "<!-- test: registry -->"
)

// TestCommands runs the commands of every page, in their order, against a server of its own, compares what they print, and
// the machine before and after. They are run from a copy of the tree's root that has the examples and the server.
func TestCommands(t *testing.T) {
	t.Parallel()
	for name, page := range pages(t) {
		if len(steps(page)) == 0 {
			continue
		}
		t.Run(strings.TrimSuffix(name, ".md"), func(t *testing.T) {
			t.Parallel()
			testkit.Root(t)
			if !strings.Contains(page, "<!-- test: ") {
				testkit.Elsewhere(t)
			}
			testkit.Need(t, "bash", "busybox", "curl", "jq", "mksquashfs", "squashfs", "erofs", "overlay")
			if strings.Contains(page, needsRegistry) {
				testkit.NotInGuest(t, "skopeo")
				testkit.Need(t, "docker-registry", "skopeo", "umoci", "erofs")
			}
			if strings.Contains(page, needsCeph) {
				testkit.StartCeph(t)
			}
			if strings.Contains(page, needsNFS) {
				testkit.StartNFS(t)
			}
			if strings.Contains(page, needsISCSI) || strings.Contains(page, needsVerity) {
				testkit.Guest(t)
			}
			if strings.Contains(page, needsDebian) {
				if os.Getenv("IMAGEAPI_DEBIAN") != "" {
					t.Skip("fetches packages, and here is no network")
				}
				testkit.Need(t, "mmdebstrap")
			}
			if strings.Contains(page, needsControllers) {
				testkit.Controllers(t, "memory", "cpu", "cpuset", "pids")
			}
			run(t, name, page)
		})
	}
}

// index is the page with the setup that all other pages of docs/ share, and self a page that needs none.
const (
	index = "docs/index.md"
	self  = "README.md"
)

// withSetup returns the commands of a page after those of the index, which create the demo image, and before the removal of its files.
func withSetup(t *testing.T, name, page string, private *strings.Replacer) (all []step) {
	t.Helper()
	if name != self && name != index {
		for _, s := range steps(private.Replace(pages(t)[index])) {
			s.page = index
			all = append(all, s)
		}
	}
	for _, s := range steps(private.Replace(page)) {
		s.page = name
		all = append(all, s)
	}
	return append(all, step{page: name, command: private.Replace("rm -rf /tmp/images")})
}

func run(t *testing.T, name, page string) {
	d := harness.Start(t)
	// The pages' /tmp/images. It is new to the kernel too, so that its device and file names are unique.
	images := testkit.RunDir(t) + "/images"
	private := strings.NewReplacer("/run/imageapi.sock", d.Socket, "/run/imageapi", d.RunDir, "/tmp/images", images, "127.0.0.1:8080", d.Address)
	tree := workTree(t, private)
	testkit.Unchanged(t, d.Scope(filepath.Dir(images), tree))

	all := withSetup(t, name, page, private)
	outputs := execute(t, tree, d.Socket, all)
	for i, s := range all {
		if i >= len(outputs) {
			t.Fatalf("%s:%d: never ran, or was cut off: %s", s.page, s.line, s.command)
		}
		got := private.Replace(outputs[i]) // the help contains the usual paths
		if !prints(s.want, got) {
			t.Errorf("%s:%d: # %s\nprints\n%s\nbut the page says\n%s", s.page, s.line, s.command, got, strings.Join(s.want, "\n"))
		}
	}
}

// workTree makes a directory with what commands of the documentation use of the tree.
func workTree(t *testing.T, private *strings.Replacer) string {
	t.Helper()
	tree := t.TempDir()
	for _, dir := range []string{"bin", "docs/examples"} {
		if err := os.MkdirAll(filepath.Join(tree, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, path := range map[string]string{"imageapi-server": harness.Server(t), "imageapi": harness.CLI(t)} {
		if err := os.Symlink(path, filepath.Join(tree, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	examples, err := filepath.Glob(filepath.Join(harness.Root(), "docs/examples/*.*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range examples {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		copied := filepath.Join(tree, "docs/examples", filepath.Base(path))
		if err := os.WriteFile(copied, []byte(private.Replace(string(text))), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return tree
}

// execute runs commands in one shell, whose client finds the server at a socket, and returns what each of them prints, also to
// standard error.
func execute(t *testing.T, dir, socket string, all []step) []string {
	t.Helper()
	var script strings.Builder
	for _, s := range all {
		fmt.Fprintf(&script, "%s\nprintf '%s'\n", s.command, mark)
	}
	path := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(path, []byte(script.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", path)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "IMAGEAPI_HOST=unix://"+socket, "PATH="+dir+"/bin:"+os.Getenv("PATH")+":/usr/sbin:/sbin")
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		t.Errorf("the commands do not end: %v", err)
	}
	outputs := strings.Split(string(out), mark)
	return outputs[:len(outputs)-1]
}
