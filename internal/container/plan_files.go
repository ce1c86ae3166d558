package container

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/go-openapi/swag/conv"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// Words in a list of devices in addition to paths.
const (
	minimalDevices = "minimal"
	hostDevices    = "host"
)

// ownDevices are the entries of /dev that each container has itself.
var ownDevices = []string{"pts", "shm", "mqueue", "ptmx", "console", "fd", "stdin", "stdout", "stderr", "core"}

// maxPaths is how many devices or binds can be listed.
const maxPaths = 128

func checkDevices(list []string, faults *errs.Faults) {
	if len(list) > maxPaths {
		faults.Add("devices", "has %d entries, more than %d: list directories", len(list), maxPaths)
		return
	}
	for i, device := range list {
		at := fmt.Sprintf("devices[%d]", i)
		below, inDev := strings.CutPrefix(device, "/dev/")
		top, _, _ := strings.Cut(below, "/")
		switch {
		case device == hostDevices && len(list) > 1:
			faults.Add(at, "%q is all that the node has: give it alone", device)
		case device == hostDevices, device == minimalDevices:
		case device == "/dev" || device == "/dev/":
			faults.Add(at, "is all of the node's /dev: for that give %q", hostDevices)
		case !inDev || path.Clean(device) != strings.TrimSuffix(device, "/"):
			faults.Add(at, "%q is neither a plain path in /dev nor %q nor %q", device, minimalDevices, hostDevices)
		case slices.Contains(ownDevices, top):
			faults.Add(at, "the container has its own /dev/%s; leave it out", top)
		default:
			checkPath(at, device, faults)
		}
	}
}

func (u *unit) checkBinds(faults *errs.Faults) {
	if n := len(u.Def.Binds); n > maxPaths {
		faults.Add("binds", "has %d entries, more than %d: bind a directory above them", n, maxPaths)
		return
	}
	seen := map[string]int{}
	for i, b := range u.Def.Binds {
		at := fmt.Sprintf("binds[%d]", i)
		if b == nil || conv.Value(b.Source) == "" || conv.Value(b.Target) == "" {
			faults.Add(at, "needs a source and a target")
			continue
		}
		b.Ro = new(conv.Value(b.Ro))
		checkPath(at+".source", *b.Source, faults)
		if checkTarget(at+".target", *b.Target, faults) {
			clean := path.Clean(*b.Target)
			if first, twice := seen[clean]; twice {
				faults.Add(at+".target", "%s is the target of binds[%d] too, which it would cover", clean, first)
			}
			seen[clean] = i
		}
	}
}

func (u *unit) runBinds(config *wire.Config) {
	for _, b := range u.Def.Binds {
		config.Binds = append(config.Binds, wire.Bind{Target: *b.Target})
	}
}

// checkTarget reports whether something can be mounted at a path of a container.
func checkTarget(at, target string, faults *errs.Faults) bool {
	if !checkPath(at, target, faults) {
		return false
	}
	if slices.Contains(strings.Split(target, "/"), "..") {
		faults.Add(at, `%q has a "..": give the path without`, target)
		return false
	}
	switch clean := path.Clean(target); clean {
	case "/":
		faults.Add(at, "is the root, which is the mount of the container")
		return false
	case "/dev":
		faults.Add(at, "is made by the server: for the node's /dev give %q in devices", hostDevices)
		return false
	case "/proc":
		faults.Add(at, "is made by the server, for the container's own processes")
		return false
	}
	return true
}
