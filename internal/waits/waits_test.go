package waits_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kraken-hpc/imageapi/internal/waits"
)

// shown collects what is shown, and fails the test if it was not since the act began.
type shown struct {
	t   *testing.T
	mu  sync.Mutex
	all []string
}

func (s *shown) show(what string, since time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, what)
	if what != "" && time.Since(since) < waits.Grace {
		s.t.Errorf("%q is shown since %v, after less than %v", what, time.Since(since), waits.Grace)
	}
}

func (s *shown) is(want ...string) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Equal(s.all, want) {
		s.t.Errorf("shown %q, want %q", s.all, want)
	}
}

// watched runs a test on a clock of its own.
func watched(t *testing.T, test func(ctx context.Context, s *shown)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &shown{t: t}
		test(waits.With(t.Context(), s.show), s)
	})
}

func sleep(d time.Duration) { <-time.After(d) }

func TestAFastActIsToldToNobody(t *testing.T) {
	t.Parallel()
	watched(t, func(ctx context.Context, s *shown) {
		end := waits.Begin(ctx, "mount")
		sleep(waits.Grace - 1)
		end(false)
		sleep(time.Hour)
		s.is()
	})
}

func TestALateActIsShownUntilItEnds(t *testing.T) {
	t.Parallel()
	watched(t, func(ctx context.Context, s *shown) {
		end := waits.Begin(waits.On(ctx, "NFS server here"), "mount")
		sleep(2 * waits.Grace)
		s.is("NFS server here: mount")
		end(false)
		s.is("NFS server here: mount", "")
	})
}

func TestWhatWasGivenUpStaysShown(t *testing.T) {
	t.Parallel()
	watched(t, func(ctx context.Context, s *shown) {
		end := waits.Begin(ctx, "sync")
		sleep(2 * waits.Grace)
		end(true)
		sleep(time.Hour)
		s.is("sync")
	})
}

func TestTheInnermostWaitIsShown(t *testing.T) {
	t.Parallel()
	watched(t, func(ctx context.Context, s *shown) {
		outer := waits.Begin(ctx, "outer")
		sleep(waits.Grace / 2)
		middle := waits.Begin(ctx, "middle")
		sleep(waits.Grace / 4)
		inner := waits.Begin(ctx, "inner")
		sleep(2 * waits.Grace)
		s.is("outer", "middle", "inner")
		middle(false)
		s.is("outer", "middle", "inner")
		inner(false)
		s.is("outer", "middle", "inner", "outer")
		outer(false)
		s.is("outer", "middle", "inner", "outer", "")
	})
}

func TestNobodyWatches(t *testing.T) {
	t.Parallel()
	waits.Begin(t.Context(), "mount")(false)
}
