package cli

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// The demo image runs with no definition, has the usual tools, and stays as it is under an overlay.
func TestDemoImage(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "erofs")
	s := newShell(t)
	image := filepath.Join(t.TempDir(), "images", "demo.erofs")
	if out := s.ok(t, "demo-image", image, "--image-version", "7"); out != image+" created\n" {
		t.Errorf("it prints %q", out)
	}
	before, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	matches(t, s.ok(t, "run", "file://"+image, "--name", "demo"), `container \d+ \(demo\) is running\n`)
	testkit.Eventually(t, "init prints its line", func() bool { return s.ok(t, "logs", "demo") != "" })
	matches(t, s.ok(t, "logs", "demo"), `hello from .+\n`)
	matches(t, s.ok(t, "exec", "demo", "sh", "-c", "stat -c %A /tmp; id -u; ls -d /dev /proc; cat /etc/os-release"),
		`drwxrwxrwt\n0\n/dev\n/proc\n.*IMAGE_VERSION=7\n`)
	s.ok(t, "exec", "demo", "touch", "/bin/new")
	matches(t, s.ok(t, "stop", "demo"), `container \d+ \(demo\) is exited \(0\)\n`)
	s.ok(t, "remove", "demo")
	if after, err := os.ReadFile(image); err != nil || string(after) != string(before) {
		t.Errorf("the image has changed: %v", err)
	}
}
