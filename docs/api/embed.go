// Package apidocs holds the reference of the API as one page that needs no network. `make docs` makes it from
// swagger.yaml.
package apidocs

import (
	"embed"
	"errors"
)

// The page is embedded as `make init` compresses it, which is a quarter of its size. Git does not keep that: the pattern fits this
// file too, so that everything compiles without it.
//
//go:embed *.g[oz]
var files embed.FS

// Page returns the page: HTML, compressed by gzip.
func Page() ([]byte, error) {
	page, err := files.ReadFile("index.html.gz")
	if err != nil {
		return nil, errors.New("this server was built without its reference: build it with `make build`")
	}
	return page, nil
}

// OpenAPI is the specification as OpenAPI 3. `make generate` converts it from swagger.yaml.
//
//go:embed openapi.json
var OpenAPI []byte
