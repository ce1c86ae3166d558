package testkit

import (
	"os"
	"runtime/debug"
	"testing"
	"time"
)

// bound ends the whole process, with what each goroutine does, if a test takes longer than ten minutes, or an hour if
// IMAGEAPI_TEST_FULL is set: a test with parallel subtests waits long for its turn among others. Nothing less ends a test that
// hangs. In the guest of test/vm those after it run all the same.
func bound(t testing.TB) {
	t.Helper()
	limit := 10 * time.Minute
	if os.Getenv("IMAGEAPI_TEST_FULL") != "" {
		limit = time.Hour
	}
	name := t.Name()
	timer := time.AfterFunc(limit, func() {
		debug.SetTraceback("all")
		panic(name + " hangs, longer than " + limit.String())
	})
	t.Cleanup(func() { timer.Stop() })
}
