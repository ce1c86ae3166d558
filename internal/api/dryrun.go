package api

import (
	"net/http"
	"slices"
	"strconv"
)

// dryRuns serves the older form of a dry run, dry_run=true on a create, by the operation that took its place. Such a client must
// never find the object created.
func dryRuns(next http.Handler) http.Handler {
	creates := []string{basePath + "/attach", basePath + "/mount", basePath + "/container"}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		values := query["dry_run"]
		if r.Method != http.MethodPost || len(values) != 1 || !slices.Contains(creates, r.URL.Path) {
			next.ServeHTTP(w, r)
			return
		}
		on, err := strconv.ParseBool(values[0])
		if err == nil {
			r = r.Clone(r.Context())
			query.Del("dry_run")
			r.URL.RawQuery = query.Encode()
			exchangeOf(r).header.Set("Deprecation", deprecated)
		}
		if on {
			r.URL.Path += "/plan"
		}
		next.ServeHTTP(w, r)
	})
}
