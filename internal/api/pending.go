package api

import (
	"net/http"

	"github.com/go-openapi/spec"

	"github.com/kraken-hpc/imageapi/internal/errs"
)

// The specification describes fields, parameters and operations that this version does not implement yet. A request that uses one
// returns 501, so that no client takes silence for success. Delete the line here when you implement it.

// isPending reports whether a field, as definition.field, or an operation is not implemented yet.
func isPending(name string) bool {
	switch name {
	case "mount_attach.partition_selector",

		"mount_overlay.id_map",
		"container.id_map",

		"container.tmpfs",

		"container.shm_size",

		"container_resources.cpuset_mems",
		"container_resources.hugetlb",
		"container_resources.rdma",
		"container_resources.io",
		"container_resources.memory_low",
		"container_resources.memory_min",
		"container_resources.memory_high":
		return true
	}
	return false
}

// isPendingPath reports whether a GET of a path that the specification describes only in words is not implemented yet.
func isPendingPath(path string) bool {
	return path == basePath+"/container/attach"
}

// pendingPaths answers requests for such paths.
func pendingPaths(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if (r.Method == http.MethodGet || r.Method == http.MethodHead) && isPendingPath(r.URL.Path) {
			serveError(w, r, errs.New(errs.Unsupported, "this version does not implement GET %s", r.URL.Path))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// checkPending refuses an operation that is not implemented yet.
func checkPending(op *spec.Operation) error {
	if isPending(op.ID) {
		return errs.New(errs.Unsupported, "this version does not implement the operation %s", op.ID)
	}
	return nil
}
