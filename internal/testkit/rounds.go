package testkit

import "os"

// Rounds returns how often a loop or a random test repeats: full times if IMAGEAPI_TEST_FULL is set (make test-full), else
// some times; a third of that in the guest of test/vm, where an emulated processor takes ten times as long.
func Rounds(some, full int) int {
	if os.Getenv("IMAGEAPI_TEST_FULL") != "" {
		some = full
	}
	if InGuest() {
		some = max(some/3, 1)
	}
	return some
}
