package cli

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// busyboxOf is an image of a registry with busybox, and a configuration.
func busyboxOf(t *testing.T, config map[string]any) testkit.Image {
	t.Helper()
	program, err := os.ReadFile(filepath.Join(testkit.Busybox(t), "bin", "busybox"))
	if err != nil {
		t.Fatal(err)
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, h := range []tar.Header{
		{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(program))}, {Name: "bin/sh", Typeflag: tar.TypeSymlink, Linkname: "busybox"},
		{Name: "proc/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "work/", Typeflag: tar.TypeDir, Mode: 0o755},
	} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write(program); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return testkit.NewImage(t, config, nil, testkit.Blob{MediaType: testkit.MediaLayer, Data: layer.Bytes()})
}

// TestRunImageOfRegistry: an image of a registry runs as its configuration says, unless the user gives a command. Nothing but the container is left.
func TestRunImageOfRegistry(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	registry := testkit.StartRegistry(t, "")
	image := busyboxOf(t, map[string]any{
		"Entrypoint": []string{"sh", "-c", `echo "$0: $*, $A, $PWD, $(busybox id -u):$(busybox id -g)"; trap 'exit 0' TERM; busybox sleep 1000 & wait`}, "Cmd": []string{"it's", "me"},
		"Env": []string{"A=first", "PATH=/bin", "A=second"}, "WorkingDir": "/work", "User": "7:8",
	})
	uri := "oci+http://" + registry.Push(t, "app", "1", image)
	matches(t, s.ok(t, "run", uri, "--name", "app"), `container \d+ \(app\) is running\n`)
	testkit.Eventually(t, "the entrypoint prints its line", func() bool { return s.ok(t, "logs", "app") != "" })
	matches(t, s.ok(t, "logs", "app"), `it's: me, second, /work, 7:8\n`)
	if out := s.ok(t, "list", "-q", "mounts"); len(bytes.Fields([]byte(out))) != 2 {
		t.Errorf("the mounts are %q, not those of the container alone", out)
	}
	s.ok(t, "remove", "--force", "app")
	matches(t, s.ok(t, "run", uri, "--name", "other", "--command", "/bin/sh -c \"trap 'exit 0' TERM; /bin/busybox sleep 1000 & wait\""), `container \d+ \(other\) is running\n`)
	matches(t, s.ok(t, "exec", "other", "/bin/busybox", "id", "-u"), `0\n`)
	s.ok(t, "remove", "--force", "other")
}
