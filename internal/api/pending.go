package api

import (
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

// checkPending refuses an operation that is not implemented yet.
func checkPending(op *spec.Operation) error {
	if isPending(op.ID) {
		return errs.New(errs.Unsupported, "this version does not implement the operation %s", op.ID)
	}
	return nil
}
