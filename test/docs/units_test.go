package docs

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/test/harness"
)

// What docs/service.md promises of the units stands in them: how the daemon is watched and ended, and nothing that would give it a
// mount namespace or that containers would inherit. test/vm/guest/package shows what systemd makes of it.
func TestUnits(t *testing.T) {
	t.Parallel()
	service, socket := directives(t, "imageapi.service"), directives(t, "imageapi.socket")
	for _, want := range []string{"Type=notify", "KillMode=process", "WatchdogSec=30", "Restart=on-failure", "Requires=imageapi.socket", "EnvironmentFile=-/etc/default/imageapi"} {
		if !slices.Contains(service, want) {
			t.Errorf("imageapi.service does not have %s", want)
		}
	}
	for _, want := range []string{"ListenStream=/run/imageapi.sock", "SocketMode=0600", "SocketUser=root"} {
		if !slices.Contains(socket, want) {
			t.Errorf("imageapi.socket does not have %s", want)
		}
	}
	for _, line := range service {
		for _, bad := range []string{
			"Private", "Protect", "ReadOnlyPaths", "ReadWritePaths", "InaccessiblePaths", "ExecPaths", "NoExecPaths", "BindPaths", "BindReadOnlyPaths", "TemporaryFileSystem",
			"Root", "Mount", "DynamicUser", "User", "RuntimeDirectory", "StateDirectory", "CacheDirectory", "LogsDirectory", "NoNewPrivileges", "SystemCall", "Restrict",
			"CapabilityBoundingSet", "AmbientCapabilities", "SecureBits", "Lock", "MemoryDenyWriteExecute", "OOMScoreAdjust", "Limit",
		} {
			if strings.HasPrefix(line, bad) {
				t.Errorf("imageapi.service has %s, which changes what the daemon's mounts are or what its containers inherit", line)
			}
		}
	}
}

// directives are the lines of a unit, without comments.
func directives(t *testing.T, name string) (lines []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(harness.Root(), "build/deb", name))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	if len(lines) == 0 {
		t.Fatalf("%s is empty", name)
	}
	return lines
}
