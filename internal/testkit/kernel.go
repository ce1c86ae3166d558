package testkit

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// Older tells whether the kernel is older than a version.
func Older(t testing.TB, major, minor int) bool {
	t.Helper()
	var name unix.Utsname
	check(t, unix.Uname(&name))
	var have [2]int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &have[0], &have[1]); err != nil {
		t.Fatal(err)
	}
	return have[0] < major || have[0] == major && have[1] < minor
}
