package api

import (
	"cmp"
	"context"
	"net/http"
	"time"

	"github.com/go-openapi/runtime/middleware"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/state"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/restapi/operations/containers"
)

// replaceWait is how long the response to a replace or a rollback waits for its end.
const replaceWait = 25 * time.Second

// The limits of what a client can ask of a replace, in seconds, and what a probe has if it does not say.
const (
	maxReadyWithin = 3600
	maxKeepOld     = 7 * 24 * 3600
	maxProbe       = 600
	probeTimeout   = 5
	probeInterval  = 1
	readyWithin    = 60 // of a rollback
)

// POST /container/replace
func (a *api) replaceContainer(p containers.ReplaceContainerParams) (middleware.Responder, error) {
	r := p.HTTPRequest
	condition, err := ifMatch(r)
	if err != nil {
		return nil, err
	}
	opt, err := replaceOptions(p)
	if err != nil {
		return nil, err
	}
	view, err := a.container(r, p.ID, p.Name)
	if err != nil {
		return nil, err
	}
	changes, _ := exchangeOf(r).body.value.(map[string]any) // the intake has checked that
	def, err := merge(alone(view).Container, changes)
	if err != nil {
		return nil, err
	}
	plan, err := a.Drivers.Plan(def)
	if err != nil {
		return nil, err
	}
	if isSet(p.DryRun) {
		steps, err := a.Manager.PreviewReplace(r.Context(), view.ID, plan, condition)
		return reply(http.StatusOK, &models.ContainerReplaced{Plan: planOf(r, steps)}, err)
	}
	replace, err := a.Manager.Replace(r.Context(), view.ID, plan, opt, condition)
	if err != nil {
		return nil, err
	}
	shown, downtime, over, err := a.await(r, replace)
	if !over {
		return reply(http.StatusAccepted, &models.ContainerReplaced{Container: shown}, err)
	}
	return reply(http.StatusOK, &models.ContainerReplaced{Container: shown, DowntimeMs: new(downtime.Milliseconds())}, err)
}

// POST /container/rollback
func (a *api) rollbackContainer(p containers.RollbackContainerParams) (middleware.Responder, error) {
	r := p.HTTPRequest
	view, err := a.container(r, p.ID, p.Name)
	if err != nil {
		return nil, err
	}
	replace, err := a.Manager.Rollback(r.Context(), view.ID, state.ReplaceOptions{ReadyWithin: readyWithin * time.Second})
	if err != nil {
		return nil, err
	}
	shown, _, over, err := a.await(r, replace)
	if err == nil && !over {
		err = errs.New(errs.Deadline, "roll back container %d: not done within %s; the replace continues: see the field replacing of the container", view.ID, replaceWait)
	}
	return reply(http.StatusOK, shown, err)
}

// await waits for the end of a replace, but not for longer than replaceWait, and returns the container with the name. The replace goes on
// if the client hangs up.
func (a *api) await(r *http.Request, replace *state.Replacement) (shown *models.Container, downtime time.Duration, over bool, err error) {
	ctx, cancel := a.untilShutdown(r)
	defer cancel()
	late := time.NewTimer(replaceWait)
	defer late.Stop()
	select {
	case <-ctx.Done():
		return nil, 0, false, context.Cause(ctx)
	case <-late.C:
		snap := a.Manager.Snapshot()
		if v, ok := snap.Get(replace.Old()); ok && v.InReplace() {
			o, err := render(snap, v.ID)
			return o.Container, 0, false, err
		}
		<-replace.Done() // it has just moved the name, or failed
	case <-replace.Done():
	}
	snap, id, downtime, err := replace.Result()
	for _, text := range replace.Warnings() {
		warn(r, "%s", text)
	}
	if err != nil {
		return nil, 0, true, err
	}
	o, err := render(snap, id)
	return o.Container, downtime, true, err
}

// replaceOptions reads what a client asks of a replace.
func replaceOptions(p containers.ReplaceContainerParams) (opt state.ReplaceOptions, err error) {
	var faults errs.Faults
	opt.ReadyWithin = seconds(&faults, "query parameter ready_within", *p.ReadyWithin, 1, maxReadyWithin)
	opt.KeepOld = seconds(&faults, "query parameter keep_old", *p.KeepOld, 0, maxKeepOld)
	opt.KeepFailed = *p.OnFailure == "stop"
	if given := p.Changes.Probe; given != nil {
		probe := &state.Probe{Args: given.Args, Timeout: probeTimeout * time.Second, Interval: probeInterval * time.Second}
		if len(given.Args) == 0 || given.Args[0] == "" {
			faults.Add("container_replacement.probe.args", "names no program")
		}
		if given.Timeout != 0 {
			probe.Timeout = seconds(&faults, "container_replacement.probe.timeout", given.Timeout, 1, maxProbe)
		}
		if given.Interval != 0 {
			probe.Interval = seconds(&faults, "container_replacement.probe.interval", given.Interval, 1, maxProbe)
		}
		opt.Probe = probe
	}
	return opt, faults.Err()
}

func seconds(faults *errs.Faults, path string, n, least, most int64) time.Duration {
	if n < least || n > most {
		faults.Add(path, "is %d; use a number of seconds from %d to %d", n, least, most)
		return 0
	}
	return time.Duration(n) * time.Second
}

// merge returns the definition of a container after a JSON merge patch (RFC 7396) of its top-level fields. A mount that does not change
// is the same mount.
func merge(c *models.Container, changes map[string]any) (driver.Object, error) {
	c.State = models.ContainerStateRunning
	removed := map[string]any{}
	for name := range changes {
		removed[name] = nil
	}
	return driver.Object{Container: c}, cmp.Or(fillIn(removed, c), fillIn(changes, c))
}
