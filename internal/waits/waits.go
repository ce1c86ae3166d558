// Package waits reports what actions wait for that may hang.
//
// The caller puts a [Watch] into the context of an operation on an object. The actions, far below, know no objects: they [Begin] and
// end. Short actions are not reported.
package waits

import (
	"context"
	"slices"
	"sync"
	"time"
)

// Grace is how long an act may take before it counts as waiting.
const Grace = time.Second

// Watch passes on what the acts of one object wait for.
type Watch struct {
	show func(activity string, since time.Time)

	mu   sync.Mutex // protects late and is held while show is called
	late []*act     // longer than Grace under way; the last is shown: it is a part of the others, and the most exact
}

type act struct {
	activity string
	since    time.Time
}

type watchKey struct{}

type peerKey struct{}

// With returns a context whose acts report to show what they wait for, and since when. When they have ended, show gets
// an empty text. It is called by one goroutine at a time, by none after the act has ended, and must not wait for an act.
func With(ctx context.Context, show func(activity string, since time.Time)) context.Context {
	return context.WithValue(ctx, watchKey{}, &Watch{show: show})
}

// On returns a context in which acts wait for peer, such as "NFS server 10.0.0.1".
func On(ctx context.Context, peer string) context.Context {
	return context.WithValue(ctx, peerKey{}, peer)
}

// Begin notes that an act begins which may hang. The function that it returns must be called when the act has ended. With givenUp it was not
// completed in time, and its text stays: there is no other result.
func Begin(ctx context.Context, activity string) (end func(givenUp bool)) {
	w, ok := ctx.Value(watchKey{}).(*Watch)
	if !ok {
		return func(bool) {}
	}
	if peer, ok := ctx.Value(peerKey{}).(string); ok {
		activity = peer + ": " + activity
	}
	a := &act{activity: activity, since: time.Now()}
	ended := false // protected by w.mu
	timer := time.AfterFunc(Grace, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if ended {
			return
		}
		w.late = append(w.late, a)
		w.show(a.activity, a.since)
	})
	return func(givenUp bool) {
		timer.Stop()
		w.mu.Lock()
		defer w.mu.Unlock()
		ended = true
		w.end(a, givenUp)
	}
}

// end takes an act out; w.mu is held.
func (w *Watch) end(a *act, givenUp bool) {
	i := slices.Index(w.late, a)
	if i < 0 {
		return
	}
	w.late = slices.Delete(w.late, i, i+1)
	switch rest := len(w.late); {
	case i < rest: // another one is shown
	case rest > 0:
		w.show(w.late[rest-1].activity, w.late[rest-1].since)
	case !givenUp:
		w.show("", time.Time{})
	}
}
