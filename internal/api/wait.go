package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/go-openapi/runtime/middleware"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/state"
	"github.com/kraken-hpc/imageapi/restapi/operations/containers"
)

// maxWait is the longest that a client may ask to wait, in seconds.
const maxWait = 3600

var errTimeIsUp = errors.New("the time is up")

// GET /container/wait
func (a *api) waitForContainer(p containers.WaitForContainerParams) (middleware.Responder, error) {
	g, timeout, err := goalOf(p)
	if err != nil {
		return nil, err
	}
	v, err := a.container(p.HTTPRequest, p.ID, p.Name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := a.untilShutdown(p.HTTPRequest)
	defer cancel()
	ctx, stop := context.WithTimeoutCause(ctx, timeout, errTimeIsUp)
	defer stop()
	snap, err := a.Manager.Wait(ctx, v.ID, g.reached)
	if errors.Is(err, errTimeIsUp) {
		return nil, errs.New(errs.Deadline, "container %d is not %s after %s", v.ID, g, timeout)
	}
	if err != nil {
		return nil, err
	}
	return show(snap, v.ID)
}

// untilShutdown returns a context for a request that may wait for long: it ends with the request, or with ErrStopping when
// the daemon begins to shut down. The server's time-outs do not hold for the request any more.
func (a *api) untilShutdown(r *http.Request) (context.Context, context.CancelFunc) {
	_ = exchangeOf(r).control.SetWriteDeadline(time.Time{}) // a writer without deadlines needs none; net/http itself removes that for reading
	ctx, cancel := context.WithCancelCause(r.Context())
	stop := context.AfterFunc(a.Life, func() { cancel(ErrStopping) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// goal is what a client waits for: one of some states or, without any, that the container is ready.
type goal []string

func goalOf(p containers.WaitForContainerParams) (goal, time.Duration, error) {
	var faults errs.Faults
	g := goal(p.State)
	switch ready := isSet(p.Ready); {
	case ready && len(g) > 0:
		faults.Add("query parameter ready", "cannot be combined with state")
	case !ready && len(g) == 0:
		g = goal{string(state.StateExited), string(state.StateDead)}
	}
	seconds := *p.Timeout // it has a default
	if seconds < 0 || seconds > maxWait {
		faults.Add("query parameter timeout", "is %d; use a number of seconds from 0 to %d", seconds, maxWait)
	}
	return g, time.Duration(seconds) * time.Second, faults.Err()
}

// String returns g for messages.
func (g goal) String() string { return cmp.Or(strings.Join(g, " or "), "ready") }

// has reports whether g contains one of some states.
func (g goal) has(states ...state.State) bool {
	return slices.ContainsFunc(states, func(s state.State) bool { return slices.Contains(g, string(s)) })
}

// reached reports whether a container is where g wants it. It is an error if it would have to be started for that after it has
// ended.
func (g goal) reached(v *state.View) (bool, error) {
	now := stateOf(v)
	if v.InReplace() {
		now, _ = v.Shown()
	}
	switch {
	case len(g) == 0 && v.Run != nil && v.Run.Ready && now != state.StateStopping,
		g.has(now), g.has(state.StateStopping) && isIn(v, state.StateStopping):
		return true, nil
	}
	switch {
	case v.Phase == state.Stopping: // it is being deleted
		return false, nil
	case now == state.StateStopping && g.has(state.StateExited, state.StateDead):
		return false, nil // it ends in one of them: dead if it is stopped since what it stands on is corrupted
	case now == state.StateStopping, now == state.StateExited, now == state.StateDead, v.Phase == state.Broken:
		return false, errs.New(errs.Conflict, "container %d is %s%s and becomes %s only after a new start", v.ID, now, why(v), g)
	}
	return false, nil
}

// why returns the error of a container, in brackets.
func why(v *state.View) string {
	text := v.Error
	if text == "" && v.Run != nil {
		text = v.Run.Error
	}
	if text == "" {
		return ""
	}
	return fmt.Sprintf(" (%s)", text)
}
