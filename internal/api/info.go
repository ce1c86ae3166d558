package api

import "github.com/kraken-hpc/imageapi/restapi/operations/node"

// GET /info
func (a *api) getInfo(p node.GetInfoParams) (node.GetInfoResponder, error) {
	info := a.info(p.HTTPRequest.Context())
	info.APIVersion = a.version
	return node.NewGetInfoOK().WithPayload(info), nil
}
