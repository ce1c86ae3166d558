package api

import (
	"cmp"
	"fmt"
	"maps"
	"net/http"
	"slices"

	"github.com/go-openapi/spec"

	"github.com/kraken-hpc/imageapi/internal/errs"
)

// checkQuery finds what the generated binding lets pass: it takes every word that does not mean true for false, so
// that a slip in "force" is never noticed, and does not look at parameters that the operation does not have.
func checkQuery(r *http.Request, op *spec.Operation) error {
	known := map[string]spec.Parameter{}
	for _, p := range op.Parameters {
		if p.In == "query" {
			known[p.Name] = p
		}
	}
	var faults, unknown errs.Faults
	query := r.URL.Query()
	for _, name := range slices.Sorted(maps.Keys(query)) {
		p, ok := known[name]
		value := query[name][len(query[name])-1] // the last one counts
		switch {
		case !ok:
			unknown.Add(fmt.Sprintf("query parameter %.*s", maxQuoted, name), "%s has no such parameter%s", op.ID, suggest(name, slices.Collect(maps.Keys(known))))
		case ok && p.Type == "boolean" && !slices.Contains([]string{"", "true", "false", "1", "0"}, value):
			faults.Add("query parameter "+name, "is %.*q; use true or false", maxQuoted, value)
		}
	}
	return cmp.Or(unknown.Of(errs.Unknown), faults.Err())
}
