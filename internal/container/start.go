package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/keeper"
	"github.com/kraken-hpc/imageapi/internal/proc/spawn"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
	"github.com/kraken-hpc/imageapi/internal/sys/cgroup"
	"github.com/kraken-hpc/imageapi/internal/sys/mount"
	"github.com/kraken-hpc/imageapi/internal/sys/rootpath"
	"github.com/kraken-hpc/imageapi/models"
)

// undoTimeout bounds how long an undone start waits for its processes to be dead.
const undoTimeout = 10 * time.Second

// start runs a container: the order of bring-up on the daemon's side.
func (d *Driver) start(ctx context.Context, id int64, root *driver.Tree, given trees, shares writables, limits *models.ContainerResources, config wire.Config) (_ *process, err error) {
	// 1. The log.
	config.LogName, config.LogSize = logName(id), d.opt.LogSize
	// 2. A copy of the root's mounts that is attached nowhere: on the node they are nosuid and nodev, in a container they
	// must not be. A container that must not create devices cannot bring them along in its image either.
	granted := mount.NoSUID | mount.NoDev
	if config.Drop&(1<<unix.CAP_MKNOD) != 0 {
		granted = mount.NoSUID
	}
	tree, err := d.tree(ctx, root, granted)
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	// 3. The cgroup, in which the first process will be born.
	group, err := d.parent.Create(groupName(id))
	if errors.Is(err, cgroup.ErrBusy) {
		return nil, errs.New(errs.Conflict, "start container: %w: another server uses the same parent cgroup; give each its own with --cgroup-parent", err)
	}
	if err != nil {
		return nil, err
	}
	p := d.newProcess(id, group)
	p.run(config)
	p.shares = shares
	if err := d.restrict(group, limits, config.Systemd); err != nil {
		return nil, errors.Join(err, p.undo())
	}
	// 4. The supervisor, which does the rest.
	if err := d.spawn(p, tree, given, config); err != nil {
		return nil, errors.Join(err, p.undo())
	}
	// The supervisor has them now. A descriptor of ours would keep the container from unmounting them.
	given.close()
	// 5. The command.
	if err := p.awaitCommand(ctx, config); err != nil {
		return nil, errors.Join(err, p.undo())
	}
	d.watches.Go(p.watch)
	return p, nil
}

// newProcess makes a process that lives, of a cgroup that becomes its own.
func (d *Driver) newProcess(id int64, group *cgroup.Group) *process {
	p := &process{id: id, group: group, driver: d, inUse: map[string]bool{}, log: d.opt.Log, reported: make(chan struct{}), ready: make(chan struct{}), done: make(chan struct{})}
	p.live, p.release = context.WithCancelCause(context.Background())
	p.over, p.end = context.WithCancel(context.Background())
	return p
}

// run notes what it was started with.
func (p *process) run(config wire.Config) {
	p.config = config
	p.timeout.Store(int64(config.StopTimeout))
	if !config.Systemd { // which reports itself when it is ready
		p.up.Do(func() { close(p.ready) })
	}
}

// groupName is what the cgroup of a container is called.
func groupName(id int64) string { return strconv.FormatInt(id, 10) }

// tree copies the mounts of a root and clears attributes of them.
func (d *Driver) tree(ctx context.Context, root *driver.Tree, clear mount.Attr) (*os.File, error) {
	open := func(path string) (*os.File, error) { return rootpath.Open(path, "/", unix.O_PATH|unix.O_DIRECTORY) }
	if root.Remote {
		open = func(path string) (*os.File, error) {
			return d.opt.Helper.Open(ctx, path, "/", unix.O_PATH|unix.O_DIRECTORY)
		}
	}
	dir, err := open(root.Path)
	if err != nil {
		return nil, fmt.Errorf("open root: %w", err)
	}
	defer dir.Close()
	tree, err := mount.Clone(d.opt.Failpoint, dir, true)
	if err != nil {
		return nil, err
	}
	if err := mount.Relax(d.opt.Failpoint, tree, clear); err != nil {
		tree.Close()
		return nil, err
	}
	return tree, nil
}

// spawn starts the supervisor of p.
func (d *Driver) spawn(p *process, tree *os.File, given trees, config wire.Config) (err error) {
	p.keeper, err = d.registry.Start(keeper.Spec{
		Name: groupName(p.id), Program: d.opt.Program, Args: supervisorArgs(p.id)[1:], Env: spawn.Env(),
		Files: append([]*os.File{tree, p.group.File()}, given...), Run: config.Fields(),
	})
	return d.noGroup(err)
}

// noGroup explains an error that comes of the group of the supervisors having been removed.
func (d *Driver) noGroup(err error) error {
	if !errors.Is(err, unix.ENOENT) || unix.Faccessat(int(d.supervisors.Dir), "cgroup.procs", unix.F_OK, 0) == nil {
		return err
	}
	return errs.New(errs.Conflict, "its cgroup was removed by another server with the same parent cgroup, or by another program: "+
		"give each server its own with --cgroup-parent, and restart this one")
}

// supervisorArgs is the command line of the supervisor of a container, by which it is known.
func supervisorArgs(id int64) []string {
	return []string{"imageapi-init", wire.ModeSupervisor, groupName(id)}
}

// awaitCommand waits until the supervisor has started the command.
func (p *process) awaitCommand(ctx context.Context, config wire.Config) error {
	for p.pid == 0 {
		m, err := p.keeper.Receive(ctx)
		switch {
		case err != nil && ctx.Err() != nil:
			return errs.New(errs.Deadline, "start %q: deadline exceeded: %w", config.Args[0], context.Cause(ctx))
		case err != nil:
			return fmt.Errorf("talk to supervisor: %w", err)
		case m.Kind == wire.Failed:
			return failed(m, "supervisor")
		}
		if err := p.take(m); err != nil {
			return fmt.Errorf("talk to supervisor: %w", err)
		}
	}
	return nil
}

// failed makes an error of a Failed message.
func failed(m wire.Message, from string) error {
	failure, err := wire.ParseFailure(m)
	if err != nil {
		return fmt.Errorf("talk to %s: %w", from, err)
	}
	return explain(failure)
}

// undo rolls a failed start back. It kills the supervisor first, which could otherwise clone a process after
// the cgroup was killed.
func (p *process) undo() error {
	defer p.group.Close()
	defer p.first.Close() // nil is fine
	ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
	defer cancel()
	if p.keeper != nil {
		defer p.keeper.Close()
		if err := p.keeper.Kill(ctx); err != nil { // it may have ended by itself
			return err
		}
	}
	if err := errors.Join(p.group.Kill(), p.group.WaitEmpty(ctx)); err != nil {
		return err
	}
	return errors.Join(p.group.Remove(), p.driver.registry.Forget(groupName(p.id)))
}
