// Package apidocs holds the reference of the API as one page that needs no network. `make docs` makes it from
// swagger.yaml.
package apidocs

import _ "embed"

// Page is the page in HTML.
//
//go:embed index.html
var Page []byte
