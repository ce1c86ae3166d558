package api

import (
	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/restapi/operations/containers"
)

// GET /container/stats
func (a *api) getContainerStats(p containers.GetContainerStatsParams) (containers.GetContainerStatsResponder, error) {
	snap := a.manager.Snapshot()
	id, err := target{class: driver.Container, id: p.ID, name: p.Name}.find(snap)
	if err != nil {
		return nil, err
	}
	about(p.HTTPRequest, driver.Container, id)
	stats, err := a.manager.Stats(id)
	if err != nil {
		return nil, err
	}
	view, _ := snap.Get(id) // find has found it there
	return containers.NewGetContainerStatsOK().WithPayload(&models.ContainerStats{
		ID: models.ID(id), Name: models.Name(view.Name),
		Memory: stats.Memory, MemoryLimit: stats.MemoryLimit, Swap: stats.Swap,
		CPUUsec: stats.CPU, Pids: stats.PIDs, LogBytes: stats.Log,
	}), nil
}
