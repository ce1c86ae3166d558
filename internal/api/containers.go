package api

import (
	"github.com/go-openapi/runtime/middleware"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/state"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/restapi/operations/containers"
)

// GET /container
func (a *api) listContainers(p containers.ListContainersParams) (containers.ListContainersResponder, error) {
	return a.answerList(filter{class: driver.Container, id: p.ID, name: p.Name, state: p.State, prefix: p.NamePrefix, labels: p.Label}, func(found []driver.Object) middleware.Responder {
		list := make([]*models.Container, len(found))
		for i, o := range found {
			list[i] = o.Container
		}
		return containers.NewListContainersOK().WithPayload(list)
	})
}

// POST /container
func (a *api) createContainer(p containers.CreateContainerParams) (containers.CreateContainerResponder, error) {
	def := driver.Object{Container: p.Container}
	if isSet(p.DryRun) {
		return a.preview(p.HTTPRequest, def)
	}
	if key := p.IdempotencyKey; key != nil && *key != "" {
		return a.createOnce(p.HTTPRequest, def, *key)
	}
	made, err := a.create(p.HTTPRequest, def)
	if err != nil {
		return nil, err
	}
	return containers.NewCreateContainerCreated().WithLocation(location(driver.Container, int64(made.Container.ID))).WithPayload(made.Container), nil
}

// DELETE /container
func (a *api) deleteContainer(p containers.DeleteContainerParams) (containers.DeleteContainerResponder, error) {
	removed, err := a.remove(p.HTTPRequest, target{class: driver.Container, id: p.ID, name: p.Name}, p.Force)
	if err != nil {
		return nil, err
	}
	return containers.NewDeleteContainerOK().WithPayload(removed.Container), nil
}

// PATCH /container
func (a *api) setContainerState(p containers.SetContainerStateParams) (containers.SetContainerStateResponder, error) {
	changed, err := a.setState(p.HTTPRequest, target{class: driver.Container, id: p.ID, name: p.Name}, state.State(p.State))
	if err != nil {
		return nil, err
	}
	return containers.NewSetContainerStateOK().WithPayload(changed.Container), nil
}

// PATCH /container/config
func (a *api) updateContainer(p containers.UpdateContainerParams) (containers.UpdateContainerResponder, error) {
	r := p.HTTPRequest
	condition, err := ifMatch(r)
	if err != nil {
		return nil, err
	}
	t := target{class: driver.Container, id: p.ID, name: p.Name}
	id, err := t.find(a.manager.Snapshot())
	if err != nil {
		return nil, err
	}
	about(r, t.class, id)
	snap, err := a.manager.Update(r.Context(), id, driver.Change{Path: "container_config", Fields: exchangeOf(r).fields, Config: p.Config}, condition)
	if err != nil {
		return nil, err
	}
	changed, err := render(snap, id)
	if err != nil {
		return nil, err
	}
	return containers.NewUpdateContainerOK().WithPayload(changed.Container), nil
}
