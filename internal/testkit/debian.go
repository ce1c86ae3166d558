package testkit

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// Debians are the suites that Debian has an image of: bullseye (systemd 247), bookworm (252) and trixie (257), or those in the
// directory IMAGEAPI_DEBIAN where that is set.
func Debians() []string {
	dir := os.Getenv("IMAGEAPI_DEBIAN")
	if dir == "" {
		return []string{"bullseye", "bookworm", "trixie"}
	}
	var suites []string
	images, _ := filepath.Glob(filepath.Join(dir, "*.squashfs")) // the pattern is well-formed
	for _, image := range images {
		suites = append(suites, strings.TrimSuffix(filepath.Base(image), ".squashfs"))
	}
	return suites
}

// Debian returns a SquashFS image of a small Debian with systemd. It is built once, which takes half a minute and the network,
// and kept below ${XDG_CACHE_HOME:-~/.cache}. Where neither is to be had, as in a virtual machine, IMAGEAPI_DEBIAN names a
// directory with SUITE.squashfs.
func Debian(t testing.TB, suite string) string {
	t.Helper()
	if dir := os.Getenv("IMAGEAPI_DEBIAN"); dir != "" {
		return filepath.Join(dir, suite+".squashfs")
	}
	Need(t, "squashfs", "mmdebstrap", "mksquashfs")
	return built(t, "debian.sh", suite)
}

// built returns what a script of this directory prints: the path of an image.
func built(t testing.TB, script, name string) string {
	t.Helper()
	_, here, _, _ := runtime.Caller(0)
	cmd := exec.Command(filepath.Join(filepath.Dir(here), script), name)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, said.String())
	}
	return strings.TrimSpace(string(out))
}
