package container

import (
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/kballard/go-shellquote"
	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/container/proto"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/models"
)

// plan checks a definition and fills in its defaults.
func plan(c *models.Container) (*unit, errs.Faults) {
	var faults errs.Faults
	u := &unit{ContainerName: string(c.Name)}
	if c.Command != nil {
		u.Command = *c.Command
	}
	u.Words = split(u.Command, &faults)
	u.Systemd = c.Systemd != nil && *c.Systemd
	u.Namespaces = effective(c.Namespaces)
	if u.Systemd {
		u.Namespaces = systemdList(c.Namespaces, &faults)
	}
	u.Policy, u.MaxRestarts, u.Labels = c.Restart, c.MaxRestarts, maps.Clone(c.Labels)
	u.checkRestart(&faults)
	switch c.State {
	case "", models.ContainerStateCreated:
	case models.ContainerStateRunning:
		u.Running = true
	default:
		faults.Add("state", "a container is made %q or %q, not %q", models.ContainerStateCreated, models.ContainerStateRunning, c.State)
	}
	u.planOptions(c, &faults)
	u.Resources = planResources(c.Resources, &faults)
	return u, faults
}

func (u *unit) checkRestart(faults *errs.Faults) {
	switch {
	case u.MaxRestarts < 0:
		faults.Add("max_restarts", "is negative: give how often in a row, or 0 for any number")
	case u.MaxRestarts > 0 && !u.Restart().OnFailure:
		faults.Add("max_restarts", "means nothing without restart: on-failure or always")
	}
}

// split makes words of a command as a POSIX shell does with quotes and backslashes; nothing is expanded.
func split(command string, faults *errs.Faults) []string {
	switch {
	case len(command) > proto.MaxCommand:
		faults.Add("command", "is %d bytes long, more than %d", len(command), proto.MaxCommand)
		return nil
	case strings.ContainsRune(command, 0):
		faults.Add("command", "has a NUL character, which no program can be given")
		return nil
	}
	words, err := shellquote.Split(command)
	switch {
	case errors.Is(err, shellquote.UnterminatedSingleQuoteError):
		faults.Add("command", "a single quote (') is not closed")
	case errors.Is(err, shellquote.UnterminatedDoubleQuoteError):
		faults.Add("command", "a double quote (\") is not closed")
	case errors.Is(err, shellquote.UnterminatedEscapeError):
		faults.Add("command", "ends in a backslash with nothing after it")
	case err != nil:
		faults.Add("command", "%v", err)
	case len(words) == 0 || words[0] == "":
		faults.Add("command", "names no program")
	}
	return words
}

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

// effective returns what a list of namespaces comes to: mnt is always among them, none is there twice, and an empty list
// is mnt, pid, ipc, uts and cgroup. Without the last one an init that mounts the cgroup tree would manage that of the node.
func effective(list []models.ContainerNamespace) []models.ContainerNamespace {
	if len(list) == 0 {
		list = systemdNamespaces[:]
	}
	var out []models.ContainerNamespace
	for _, n := range namespaces {
		if n.name == models.ContainerNamespaceMnt || slices.Contains(list, n.name) {
			out = append(out, n.name)
		}
	}
	return out
}

// flags returns the namespaces as clone(2) takes them.
func flags(list []models.ContainerNamespace) (flags uintptr) {
	for _, n := range namespaces {
		if slices.Contains(list, n.name) {
			flags |= n.flag
		}
	}
	return flags
}
