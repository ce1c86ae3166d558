package api

import (
	"net/http"

	"github.com/go-openapi/runtime/middleware"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/state"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/restapi/operations/containers"
)

// container finds the container that a request names.
func (a *api) container(r *http.Request, id *int64, name *string) (*state.View, error) {
	return a.find(r, target{class: driver.Container, id: id, name: name})
}

// PATCH /container
func (a *api) setContainerState(p containers.SetContainerStateParams) (middleware.Responder, error) {
	v, err := a.container(p.HTTPRequest, p.ID, p.Name)
	if err != nil {
		return nil, err
	}
	want := state.State(p.State)
	snap, err := a.Manager.SetState(p.HTTPRequest.Context(), v.ID, want)
	if err != nil {
		return nil, err
	}
	o, err := render(snap, v.ID)
	if v, ok := snap.Get(v.ID); ok && err == nil && want == state.StateExited {
		o.Container.State = models.ContainerState(stateOf(v)) // only here a container that was asked to stop reads stopping
		if v.InReplace() {
			o.Container.State = models.ContainerStateStopping // whichever of its versions runs
		}
	}
	return reply(http.StatusOK, o.Container, err)
}

// PATCH /container/config
func (a *api) updateContainer(p containers.UpdateContainerParams) (middleware.Responder, error) {
	r := p.HTTPRequest
	condition, err := ifMatch(r)
	if err != nil {
		return nil, err
	}
	v, err := a.container(r, p.ID, p.Name)
	if err != nil {
		return nil, err
	}
	snap, err := a.Manager.Update(r.Context(), v.ID, driver.Change{Path: "container_config", Fields: exchangeOf(r).body.changed, Config: p.Config}, condition)
	if err != nil {
		return nil, err
	}
	return show(snap, v.ID)
}

// GET /container/stats
func (a *api) getContainerStats(p containers.GetContainerStatsParams) (middleware.Responder, error) {
	v, err := a.container(p.HTTPRequest, p.ID, p.Name)
	if err != nil {
		return nil, err
	}
	stats, err := a.Manager.Stats(v.ID)
	return reply(http.StatusOK, &models.ContainerStats{
		ID: models.ID(v.ID), Name: models.Name(v.Name),
		Memory: stats.Memory, MemoryLimit: stats.MemoryLimit, Swap: stats.Swap,
		CPUUsec: stats.CPU, Pids: stats.PIDs, LogBytes: stats.Log,
	}, err)
}
