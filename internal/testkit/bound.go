package testkit

import (
	"os"
	"runtime/debug"
	"testing"
	"time"
)

// bound ends the whole process, with what each goroutine does, if a test takes longer than four minutes, ten in the guest of
// test/vm, where one waits long for its turn among others, or an hour if IMAGEAPI_TEST_FULL is set. Nothing less ends a test that
// hangs. In that guest those after it run all the same.
func bound(t testing.TB) {
	t.Helper()
	limit := 4 * time.Minute
	if InGuest() {
		limit = 10 * time.Minute
	}
	if os.Getenv("IMAGEAPI_TEST_FULL") != "" {
		limit = time.Hour
	}
	name := t.Name()
	timer := time.AfterFunc(limit, func() {
		debug.SetTraceback("all")
		panic(name + " hangs: it takes longer than " + limit.String())
	})
	t.Cleanup(func() { timer.Stop() })
}
