package api

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/go-openapi/runtime/middleware"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/logkey"
	"github.com/kraken-hpc/imageapi/internal/state"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/restapi/operations/attachments"
	"github.com/kraken-hpc/imageapi/restapi/operations/containers"
	"github.com/kraken-hpc/imageapi/restapi/operations/mounts"
)

// The operations that attachments, mounts and containers have in common. Each is one function; the handlers fill in its parameters.

// GET /attach
func (a *api) listAttachments(p attachments.ListAttachmentsParams) (middleware.Responder, error) {
	return a.list(filter{target: target{class: driver.Attach, id: p.ID}, kind: p.Kind, labels: p.Label})
}

// GET /mount
func (a *api) listMounts(p mounts.ListMountsParams) (middleware.Responder, error) {
	return a.list(filter{target: target{class: driver.Mount, id: p.ID}, kind: p.Kind, labels: p.Label})
}

// GET /container
func (a *api) listContainers(p containers.ListContainersParams) (middleware.Responder, error) {
	return a.list(filter{target: target{driver.Container, p.ID, p.Name}, state: p.State, prefix: p.NamePrefix, labels: p.Label})
}

// POST /attach
func (a *api) attach(p attachments.AttachParams) (middleware.Responder, error) {
	return a.create(p.HTTPRequest, driver.Object{Attach: p.Attach}, p.IdempotencyKey)
}

// POST /mount
func (a *api) mount(p mounts.MountParams) (middleware.Responder, error) {
	return a.create(p.HTTPRequest, driver.Object{Mount: p.Mount}, p.IdempotencyKey)
}

// POST /container
func (a *api) createContainer(p containers.CreateContainerParams) (middleware.Responder, error) {
	return a.create(p.HTTPRequest, driver.Object{Container: p.Container}, p.IdempotencyKey)
}

// POST /attach/plan
func (a *api) planAttach(p attachments.PlanAttachParams) (middleware.Responder, error) {
	return a.preview(p.HTTPRequest, driver.Object{Attach: p.Attach})
}

// POST /mount/plan
func (a *api) planMount(p mounts.PlanMountParams) (middleware.Responder, error) {
	return a.preview(p.HTTPRequest, driver.Object{Mount: p.Mount})
}

// POST /container/plan
func (a *api) planContainer(p containers.PlanContainerParams) (middleware.Responder, error) {
	return a.preview(p.HTTPRequest, driver.Object{Container: p.Container})
}

// DELETE /attach
func (a *api) deleteAttach(p attachments.DeleteAttachParams) (middleware.Responder, error) {
	return a.remove(p.HTTPRequest, target{class: driver.Attach, id: &p.ID}, p.Force)
}

// DELETE /mount
func (a *api) deleteMount(p mounts.DeleteMountParams) (middleware.Responder, error) {
	return a.remove(p.HTTPRequest, target{class: driver.Mount, id: &p.ID}, p.Force)
}

// DELETE /container
func (a *api) deleteContainer(p containers.DeleteContainerParams) (middleware.Responder, error) {
	return a.remove(p.HTTPRequest, target{driver.Container, p.ID, p.Name}, p.Force)
}

// preview returns the steps of create.
func (a *api) preview(r *http.Request, def driver.Object) (middleware.Responder, error) {
	plan, err := a.Drivers.Plan(def)
	if err != nil {
		return nil, err
	}
	steps, err := a.Manager.Preview(r.Context(), plan)
	return reply(http.StatusOK, planOf(r, steps), err)
}

// create creates the object of a definition, with its inline dependencies. With a key the object is created once, and a repeated request gets
// the first response.
func (a *api) create(r *http.Request, def driver.Object, key *string) (middleware.Responder, error) {
	plan, err := a.Drivers.Plan(def)
	if err != nil {
		return nil, err
	}
	respond := func(snap *state.Snapshot, id int64) ([]byte, error) {
		warnOfCreated(r, snap, plan, id)
		o, err := render(snap, id)
		if err != nil {
			return nil, err
		}
		return encode(shown(o))
	}
	var body []byte
	var id int64
	if key == nil || *key == "" {
		var snap *state.Snapshot
		if snap, id, err = a.Manager.Create(r.Context(), plan); err == nil {
			body, err = respond(snap, id)
		}
	} else {
		body, id, err = a.createOnce(r, plan, *key, respond)
	}
	if err != nil {
		return nil, err
	}
	about(r, plan.Class, id)
	return answer{http.StatusCreated, basePath + "/" + string(plan.Class) + "?id=" + strconv.FormatInt(id, 10), body}, nil
}

// createOnce creates an object unless the client has created it by an earlier request with the key.
func (a *api) createOnce(r *http.Request, plan *driver.Plan, key string, respond func(*state.Snapshot, int64) ([]byte, error)) ([]byte, int64, error) {
	e := exchangeOf(r)
	body, again, id, err := a.Manager.CreateOnce(r.Context(), plan, state.Once{
		Key: strings.Join([]string{ownerOf(r), e.operation, key}, "\n"), Digest: digestOf(e.body.value), Answer: respond,
	})
	if again && err == nil {
		e.log.Info("request repeated, first response returned", logkey.Operation, e.operation, logkey.Object, nameOf(plan.Class, id))
	}
	return body, id, err
}

// planOf returns a plan with some steps.
func planOf(r *http.Request, steps []state.Step) *models.Plan {
	plan := &models.Plan{}
	for _, s := range steps {
		plan.Steps = append(plan.Steps, &models.PlanStep{
			Act: &s.Act, Path: &s.Path, Class: new(string(s.Class)), Kind: s.Kind, ID: s.ID, Does: &s.Does,
			Unknown: append([]string{}, s.Unknown...), // a list is never null
		})
		for _, text := range s.Warnings {
			warn(r, "%s.%s", s.Path, text)
		}
	}
	return plan
}

// isSet reports whether an optional parameter is true.
func isSet(p *bool) bool { return p != nil && *p }

// warnOfCreated passes on the warnings about an object and its inline dependencies.
func warnOfCreated(r *http.Request, snap *state.Snapshot, plan *driver.Plan, id int64) {
	view, ok := snap.Get(id)
	if !ok {
		return
	}
	for _, text := range view.Status.Warnings {
		warn(r, "%s.%s", plan.Path, text)
	}
	for i, need := range plan.Needs {
		if need.Plan != nil {
			warnOfCreated(r, snap, need.Plan, view.Needs[i])
		}
	}
}

// remove deletes an object and returns it as it was.
func (a *api) remove(r *http.Request, t target, force *bool) (middleware.Responder, error) {
	condition, err := ifMatch(r)
	if err != nil {
		return nil, err
	}
	v, err := a.find(r, t)
	if err != nil {
		return nil, err
	}
	snap, warnings, err := a.Manager.Delete(r.Context(), t.class, v.ID, isSet(force), condition)
	for _, text := range warnings {
		warn(r, "%s", text)
	}
	if err != nil {
		return nil, err
	}
	return show(snap, v.ID)
}
