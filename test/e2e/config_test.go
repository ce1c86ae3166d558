package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/test/harness"
)

// A server takes its options from a file, refuses one that others can write, and warns of a variable of 0.2.
func TestConfigurationFile(t *testing.T) {
	testkit.Root(t)
	file := filepath.Join(t.TempDir(), "server.yaml")
	if err := os.WriteFile(file, []byte("log-level: debug\nmax-objects: 0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TLS_PORT", "8444")
	d := harness.Start(t, "--config", file)
	if out, err := exec.CommandContext(t.Context(), harness.CLI(t), "--host", "unix://"+d.Socket, "list").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"level=DEBUG", `msg="environment variable ignored or deprecated"`, "$TLS_PORT is deprecated; use $IMAGEAPI_TLS_PORT"} {
		if !strings.Contains(d.Log(), want) {
			t.Errorf("%s is not in the log", want)
		}
	}
	if err := os.Chmod(file, 0o622); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), harness.Server(t), "--config", file, "--run-dir", d.RunDir)
	if out, _ := cmd.CombinedOutput(); cmd.ProcessState.ExitCode() != 2 || !strings.Contains(string(out), "other users can write the file") {
		t.Errorf("%v: %s", cmd.ProcessState, out)
	}
}
