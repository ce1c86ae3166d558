package container

import (
	"context"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/proc/executable"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
	"github.com/kraken-hpc/imageapi/internal/sys/inroot"
	"github.com/kraken-hpc/imageapi/internal/sys/rootpath"
)

// Check implements driver.Unit.
func (u *unit) Check(_ context.Context, _ driver.Placement) (driver.Preview, error) {
	f := driver.Preview{Does: "make the log of the container"}
	if u.Def.Resources != nil {
		f.Does += " and try its limits"
		f.Unknown = []string{"whether the kernel takes the limits"}
	}
	if err := u.supported(); err != nil {
		return f, err
	}
	return f, enable(u.Def.Resources, u.driver.parent.CanEnable)
}

// CheckStart implements driver.ContainerUnit.
func (u *unit) CheckStart(ctx context.Context, place driver.Placement) (driver.Preview, error) {
	config, err := u.whole(place.ID)
	f := driver.Preview{Does: "start " + config.Args[0]}
	if err != nil {
		return f, err
	}
	found, err := u.driver.find(ctx, u, &config)
	found.close()
	if err != nil {
		return f, err
	}
	looked, err := u.checkCommand(place.Needs[0].Tree, config)
	if !looked {
		f.Unknown = []string{fmt.Sprintf("whether the root has %s and its dependencies", config.Args[0])}
	}
	return f, err
}

// checkCommand looks for the command in a root that is there, and reports whether the result is certain. Of what will be mounted there and
// of what a server has it knows nothing.
func (u *unit) checkCommand(tree *driver.Tree, config wire.Config) (looked bool, err error) {
	if !tree.Made() || tree.Remote {
		return false, nil
	}
	dir, err := unix.Open(tree.Path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, nil // the start says it
	}
	defer unix.Close(dir)
	r := &outside{dir: dir, path: tree.Path, covered: []string{"/proc", "/sys", "/dev"}}
	if *u.Def.Systemd {
		r.covered = append(r.covered, "/run", "/tmp")
	}
	for _, b := range u.Def.Binds {
		r.covered = append(r.covered, path.Clean(*b.Target))
	}
	file, failure := executable.Find(r, config.Args[0], config.Env)
	if failure == nil && !path.IsAbs(file) {
		return false, nil // it depends on the working directory
	}
	if failure == nil {
		failure = executable.Examine(r, file)
	}
	switch {
	case r.unsure:
		return false, nil
	case failure == nil:
		return true, nil
	case !slices.Contains(certain, failure.Reason):
		return false, nil
	}
	return true, explain(failure)
}

// certain are the reasons that stay. For a program of another sort the kernel may have an interpreter
// (binfmt_misc).
var certain = []wire.Reason{wire.NotFound, wire.NotInPath, wire.IsDirectory, wire.NotRegular, wire.NotExecutable, wire.NoInterpreter}

// outside is the root of a container that does not run yet, seen from the node. It notes when it is not certain that the container
// would see the same.
type outside struct {
	dir     int
	path    string
	covered []string // where something else will be mounted
	unsure  bool
}

// Open implements executable.Root.
func (r *outside) Open(name string, flags int) (int, error) {
	fd, err := inroot.Open(r.dir, name, rootpath.Flags(flags))
	if err != nil {
		r.unsure = r.unsure || r.isCovered(path.Clean(name)) || r.linked(name)
		return -1, err
	}
	at, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	r.unsure = r.unsure || err != nil || r.isCovered("/"+strings.TrimPrefix(strings.TrimPrefix(at, r.path), "/"))
	return fd, nil
}

// linked reports whether a link is on the way: it may lead to where something else will be.
func (r *outside) linked(name string) bool {
	fd, err := unix.Openat2(r.dir, name, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS,
	})
	if err == nil {
		unix.Close(fd)
	}
	return err != unix.ENOENT && err != unix.ENOTDIR
}

func (r *outside) isCovered(name string) bool {
	return slices.ContainsFunc(r.covered, func(c string) bool { return name == c || strings.HasPrefix(name, c+"/") })
}
