package testkit

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Controllers skips a test where the cgroup2 tree lacks one of the controllers, as on a machine that has them on version 1. The
// guest of test/vm has all.
func Controllers(t testing.TB, names ...string) {
	t.Helper()
	Root(t)
	if missing := MissingControllers(t, names...); missing != nil {
		t.Skipf("needs the controllers %s on cgroup2: make vm", strings.Join(missing, " "))
	}
}

// MissingControllers returns those of the controllers that the cgroup2 tree has not.
func MissingControllers(t testing.TB, names ...string) (missing []string) {
	t.Helper()
	has, err := os.ReadFile(filepath.Join(CgroupRoot(), "cgroup.controllers"))
	if err != nil {
		return names
	}
	for _, name := range names {
		if !slices.Contains(strings.Fields(string(has)), name) {
			missing = append(missing, name)
		}
	}
	return missing
}
