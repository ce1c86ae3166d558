// Package container runs the processes of an image, apart from the node.
//
// Each container has a supervisor, the program imageapi-init, which starts it, writes its log and knows how it ended.
// It survives this process. Package wire draws the messages between the two; package inside has the order in which the inside of a
// container comes about.
package container

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/logkey"
	"github.com/kraken-hpc/imageapi/internal/proc/keeper"
	"github.com/kraken-hpc/imageapi/internal/proc/oneshot"
	"github.com/kraken-hpc/imageapi/internal/proc/spawn"
	"github.com/kraken-hpc/imageapi/internal/sys/cgroup"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/sys/inotify"
	"github.com/kraken-hpc/imageapi/models"
)

// Options say how containers are run.
type Options struct {
	Failpoint    failpoint.Hook
	RunDir       string        // has logs/, and cgroup/ if the node has no cgroup2 mounted
	CgroupParent string        // the group that has those of the containers, a path in the cgroup2 tree
	StopTimeout  time.Duration // from SIGTERM to SIGKILL
	Capabilities []string      // that containers have besides those of the default, by name
	LogSize      int64         // how much of the log of a container is kept, in bytes, at least wire.MinLogSize
	Log          *slog.Logger
	Helper       *oneshot.Runner // for roots whose server may be gone
	Groups       []string        // the directories of the cgroups of containers, as earlier servers have recorded them
	Program      *os.File        // imageapi-init in sealed memory (package program), which stays the caller's
}

// Driver is the driver of containers.
type Driver struct {
	opt         Options
	launch      *spawn.Namespace
	registry    keeper.Registry // of the supervisors
	parent      *cgroup.Parent
	supervisors *cgroup.Group
	keepers     *cgroup.Group // of processes that serve devices
	launching   sync.Mutex    // held while a process is launched, and by Close: none is launched any more
	legacy      *cgroup.Legacy
	trapped     sync.Once        // logs groups of version 1 that cannot be left
	watcher     *inotify.Watcher // of logs that are followed
	slots       chan struct{}    // taken by the commands that run in containers

	closing  context.Context    // done when the driver is closed: containers continue without it
	shutDown context.CancelFunc // ends closing
	watches  sync.WaitGroup     // of what runs
}

// New makes what all containers have in common: the launch namespace, the parent cgroup, and the directory of the logs.
func New(ctx context.Context, opt Options) (*Driver, error) {
	d := &Driver{opt: opt, slots: make(chan struct{}, maxCommands)}
	d.closing, d.shutDown = context.WithCancel(context.Background())
	if err := d.open(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("prepare for containers: %w", err), d.Close())
	}
	return d, nil
}

func (d *Driver) open(ctx context.Context) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := d.opt.Failpoint.Do("logs make", func() error { return os.MkdirAll(d.logDir(), 0o700) }); err != nil {
		return err
	}
	if d.parent, err = cgroup.Open(d.opt.Failpoint, d.opt.CgroupParent, d.opt.RunDir); err != nil {
		return err
	}
	if err := d.checkParents(); err != nil {
		return err
	}
	// Supervisors have a group outside of the one of the daemon, which a service manager empties when it stops it.
	if d.supervisors, err = d.parent.Share(supervisorsGroup); err != nil {
		return err
	}
	if d.keepers, err = d.parent.Share(keepersGroup); err != nil {
		return err
	}
	if d.legacy, err = cgroup.OpenLegacy(d.opt.Failpoint); err != nil {
		return err
	}
	if d.launch, err = spawn.Open(d.opt.Failpoint, d.leaveLegacy); err != nil {
		return err
	}
	d.registry = keeper.Registry{
		Role: "supervisor", Dir: d.logDir(), Launch: d.Launch, Failpoint: d.opt.Failpoint,
		Cgroup: func() (*os.File, error) { return d.supervisors.File(), nil },
	}
	if d.watcher, err = inotify.New(); err != nil { // a container may have taken all before this server was started
		d.opt.Log.Warn("inotify instance not available, followed logs are polled", logkey.Error, err)
	}
	d.count()
	return nil
}

// leaveLegacy takes the thread that starts supervisors out of the daemon's groups of version 1: limits of the daemon are not for containers.
func (d *Driver) leaveLegacy() {
	if err := d.legacy.Leave(); err != nil {
		d.trapped.Do(func() {
			d.opt.Log.Warn("containers stay in cgroups v1 of the server", logkey.Error, err)
		})
	}
}

// count makes the kernel count what containers use, where it can, also of those without limits.
func (d *Driver) count() {
	for _, controller := range []string{cgroup.Memory, cgroup.PIDs} {
		if err := d.parent.Enable(controller); err != nil {
			d.opt.Log.Info("controller unavailable, resource usage not counted", logkey.Controller, controller, logkey.Error, err)
		}
	}
}

// Close releases the resources of New. Running containers continue, with their supervisors, groups, logs and sockets, for a later
// driver with the same Options (RecoverRun). Operations on them end.
func (d *Driver) Close() error {
	d.shutDown()
	d.launching.Lock()
	defer d.launching.Unlock()
	d.watches.Wait()
	if d.watcher != nil {
		d.watcher.Close()
	}
	if d.launch != nil {
		d.launch.Close()
	}
	if d.legacy != nil {
		d.legacy.Close()
	}
	var all error
	for _, group := range []*cgroup.Group{d.keepers, d.supervisors} {
		if group == nil {
			continue
		}
		if err := group.Remove(); !errors.Is(err, cgroup.ErrBusy) {
			all = errors.Join(all, err)
		}
		group.Close()
	}
	if d.parent != nil {
		all = errors.Join(all, d.forgetParents(), d.parent.Close())
	}
	return all
}

// Launch starts a program in the launch namespace, which has nothing of the node.
func (d *Driver) Launch(path string, argv []string, attr *os.ProcAttr) (*os.Process, error) {
	d.launching.Lock()
	defer d.launching.Unlock()
	if err := d.closing.Err(); err != nil {
		return nil, err
	}
	return d.launch.Start(path, argv, attr)
}

// KeepersGroup returns the cgroup of processes that serve devices, next to that of the supervisors.
func (d *Driver) KeepersGroup() (*os.File, error) { return d.keepers.File(), d.closing.Err() }

// Holds reports whether the cgroup with an id, as the kernel gives it for sockets, belongs to a container, or is below one that
// does.
func (d *Driver) Holds(cgroup uint64) (bool, error) { return d.parent.Holds(cgroup) }

// CgroupID returns the id of the cgroup at a path in the hierarchy, for Holds.
func (d *Driver) CgroupID(path string) (uint64, error) { return d.parent.ID(path) }

// Class returns driver.Container.
func (d *Driver) Class() driver.Class { return driver.Container }

// Kind returns "": there is one kind of container.
func (d *Driver) Kind() string { return "" }

// Survey looks for namespaces, and for the controllers of cgroup v2 that limit what a container uses. Containers run without them.
func (d *Driver) Survey(context.Context) (s driver.Survey) {
	for _, controller := range []string{cgroup.CPU, cgroup.CPUSet, cgroup.Memory, cgroup.PIDs} {
		if err := d.parent.CanEnable(controller); err != nil {
			s.Missing = append(s.Missing, err.Error())
		}
	}
	for _, namespace := range []string{"cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"} {
		if _, err := os.Stat("/proc/self/ns/" + namespace); err != nil {
			s.Missing = append(s.Missing, "the kernel has no namespace "+namespace)
		}
	}
	return s
}

// Plan implements driver.Driver.
func (d *Driver) Plan(def driver.Object, faults *errs.Faults) (driver.Unit, []driver.Need) {
	c := def.Container
	u, own := d.plan(c)
	switch c.State {
	case "", models.ContainerStateCreated:
	case models.ContainerStateRunning:
		u.Running = true
	default:
		own.Add("state", "a container is made %q or %q, not %q", models.ContainerStateCreated, models.ContainerStateRunning, c.State)
	}
	if c.Mount == nil {
		own.Add("mount", "is required: give the root, whole or by id")
		*faults = append(*faults, own...)
		return nil, []driver.Need{}
	}
	needs := []driver.Need{{Path: "mount", Def: driver.Object{Mount: c.Mount}}}
	if own != nil {
		*faults = append(*faults, own...)
		return nil, needs
	}
	return u, needs
}
