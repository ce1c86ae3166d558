package api

import (
	"github.com/go-openapi/runtime/middleware"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/restapi/operations/attachments"
)

// GET /attach
func (a *api) listAttachments(p attachments.ListAttachmentsParams) (attachments.ListAttachmentsResponder, error) {
	return a.answerList(filter{class: driver.Attach, id: p.ID, kind: p.Kind, labels: p.Label}, func(found []driver.Object) middleware.Responder {
		list := make([]*models.Attach, len(found))
		for i, o := range found {
			list[i] = o.Attach
		}
		return attachments.NewListAttachmentsOK().WithPayload(list)
	})
}

// POST /attach
func (a *api) attach(p attachments.AttachParams) (attachments.AttachResponder, error) {
	def := driver.Object{Attach: p.Attach}
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
	return attachments.NewAttachCreated().WithLocation(location(driver.Attach, int64(made.Attach.ID))).WithPayload(made.Attach), nil
}

// DELETE /attach
func (a *api) deleteAttach(p attachments.DeleteAttachParams) (attachments.DeleteAttachResponder, error) {
	removed, err := a.remove(p.HTTPRequest, target{class: driver.Attach, id: &p.ID}, p.Force)
	if err != nil {
		return nil, err
	}
	return attachments.NewDeleteAttachOK().WithPayload(removed.Attach), nil
}
