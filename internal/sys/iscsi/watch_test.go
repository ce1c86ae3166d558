package iscsi

import (
	"context"
	"log/slog"
	"os/exec"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// none is a Helper for sessions without units.
type none struct{ Helper }

// modprobe is a Modules.
type modprobe struct{ Modules }

func (modprobe) Load(ctx context.Context, name string) error {
	return exec.CommandContext(ctx, "modprobe", name).Run()
}

// A session whose events can't be received for a moment is logged in again nevertheless when its connection is lost.
func TestEventsFail(t *testing.T) {
	target := testkit.StartTarget(t, "eventless")
	env := Env{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler), Helper: none{}, Modules: modprobe{}}
	var changes atomic.Int32
	env.Changed = func() { changes.Add(1) }
	env.Backoff.Min, env.Backoff.Max = 100*time.Millisecond, time.Second
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := Open(ctx, env, Config{
		Initiator: "iqn.2026-05.org.example:watcher", Target: target.IQN, Portals: []Portal{{"127.0.0.1", DefaultPort}},
		MaxCommands: 128, Replacement: time.Minute,
	})
	must(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	must(t, s.events.file.Close()) // from now on receiving fails
	target.Stop(t)
	target.Start(t)
	testkit.Eventually(t, "it is logged in again", func() bool { return changes.Load() >= 2 && s.State() == LoggedIn && !s.down() })
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
