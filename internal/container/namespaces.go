package container

import (
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/models"
)

// namespaces are those that a container can have of its own, in the order in which they are shown.
var namespaces = [...]struct {
	name models.ContainerNamespace
	flag uintptr // of clone(2)
}{
	{models.ContainerNamespaceMnt, unix.CLONE_NEWNS},
	{models.ContainerNamespacePid, unix.CLONE_NEWPID},
	{models.ContainerNamespaceIpc, unix.CLONE_NEWIPC},
	{models.ContainerNamespaceUts, unix.CLONE_NEWUTS},
	{models.ContainerNamespaceNet, unix.CLONE_NEWNET},
	{models.ContainerNamespaceCgroup, unix.CLONE_NEWCGROUP},
	{models.ContainerNamespaceTime, unix.CLONE_NEWTIME},
	{models.ContainerNamespaceUser, unix.CLONE_NEWUSER},
}

// initNamespaces are those without which an init would change the node: systemd needs them, others have them by default.
var initNamespaces = []models.ContainerNamespace{
	models.ContainerNamespacePid, models.ContainerNamespaceIpc, models.ContainerNamespaceUts, models.ContainerNamespaceCgroup,
}

// checkNamespaces also writes the list as it takes effect.
func (u *unit) checkNamespaces(faults *errs.Faults) {
	u.Def.Namespaces = effective(u.Def.Namespaces)
	for _, n := range initNamespaces {
		if *u.Def.Systemd && !slices.Contains(u.Def.Namespaces, n) {
			faults.Add("namespaces", "systemd needs %s: add it, or leave the list empty", n)
		}
	}
}

// effective returns a list of namespaces as it takes effect: mnt is always among them, none is there twice, and an empty list
// is mnt, pid, ipc, uts and cgroup. Without the last one an init that mounts the cgroup tree would manage that of the node.
func effective(list []models.ContainerNamespace) (out []models.ContainerNamespace) {
	if len(list) == 0 {
		list = initNamespaces
	}
	for _, n := range namespaces {
		if n.name == models.ContainerNamespaceMnt || slices.Contains(list, n.name) {
			out = append(out, n.name)
		}
	}
	return out
}

// flags returns namespaces as clone(2) takes them.
func flags(list []models.ContainerNamespace) (flags uintptr) {
	for _, n := range namespaces {
		if slices.Contains(list, n.name) {
			flags |= n.flag
		}
	}
	return flags
}

// supported refuses namespaces that this version or this kernel lacks.
func (u *unit) supported() error {
	for _, n := range u.Def.Namespaces {
		if n == models.ContainerNamespaceUser {
			return errs.At("namespaces", errs.New(errs.Unsupported, "user is not supported: root in a container is root; leave it out"))
		}
		if _, err := os.Lstat(filepath.Join("/proc/self/ns", string(n))); err != nil {
			return errs.At("namespaces", errs.New(errs.Unsupported, "this kernel has no namespace of type %s: %w", n, err))
		}
	}
	return nil
}
