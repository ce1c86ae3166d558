package api

// The specification describes fields that this version lacks. A request that uses one returns 501, so that no client takes silence for
// success. Delete the line here when you implement it.

// isPending reports whether this version lacks a field, as definition.field.
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
