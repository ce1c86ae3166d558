package api

import (
	"github.com/go-openapi/runtime/middleware"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/restapi/operations/mounts"
)

// GET /mount
func (a *api) listMounts(p mounts.ListMountsParams) (mounts.ListMountsResponder, error) {
	return a.answerList(filter{class: driver.Mount, id: p.ID, kind: p.Kind, labels: p.Label}, func(found []driver.Object) middleware.Responder {
		list := make([]*models.Mount, len(found))
		for i, o := range found {
			list[i] = o.Mount
		}
		return mounts.NewListMountsOK().WithPayload(list)
	})
}

// POST /mount
func (a *api) mount(p mounts.MountParams) (mounts.MountResponder, error) {
	def := driver.Object{Mount: p.Mount}
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
	return mounts.NewMountCreated().WithLocation(location(driver.Mount, int64(made.Mount.ID))).WithPayload(made.Mount), nil
}

// DELETE /mount
func (a *api) deleteMount(p mounts.DeleteMountParams) (mounts.DeleteMountResponder, error) {
	removed, err := a.remove(p.HTTPRequest, target{class: driver.Mount, id: &p.ID}, p.Force)
	if err != nil {
		return nil, err
	}
	return mounts.NewDeleteMountOK().WithPayload(removed.Mount), nil
}
