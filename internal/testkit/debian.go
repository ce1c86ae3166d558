package testkit

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// Debian returns a SquashFS image of a small Debian with systemd: bullseye (systemd 247), bookworm (252) or trixie (257).
// It is built once, which takes half a minute and the network, and kept below ${XDG_CACHE_HOME:-~/.cache}. Where neither
// is to be had, as in a virtual machine, IMAGEAPI_DEBIAN names a directory with SUITE.squashfs; the test is skipped for a
// suite that is not in there.
func Debian(t testing.TB, suite string) string {
	t.Helper()
	if dir, ok := os.LookupEnv("IMAGEAPI_DEBIAN"); ok {
		image := filepath.Join(dir, suite+".squashfs")
		if _, err := os.Stat(image); err != nil {
			t.Skipf("no %s in $IMAGEAPI_DEBIAN", suite)
		}
		return image
	}
	Need(t, "squashfs", "mmdebstrap", "mksquashfs")
	_, here, _, _ := runtime.Caller(0)
	cmd := exec.Command(filepath.Join(filepath.Dir(here), "debian.sh"), suite)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, said.String())
	}
	return strings.TrimSpace(string(out))
}
