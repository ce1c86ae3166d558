package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/container/proto"
	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/cgroup"
	"github.com/kraken-hpc/imageapi/internal/sys/mount"
	"github.com/kraken-hpc/imageapi/internal/sys/rootpath"
	"github.com/kraken-hpc/imageapi/models"
)

// undoTimeout bounds how long an undone start waits for its processes to be dead.
const undoTimeout = 10 * time.Second

// start runs a container: the order of bring-up on the daemon's side.
func (d *Driver) start(ctx context.Context, id int64, root *driver.Tree, given trees, shares writables, limits *models.ContainerResources, config proto.Config) (_ *process, err error) {
	// 1. The log.
	config.LogName, config.LogSize, config.ExitName = logName(id), d.opt.LogSize, exitName(id)
	logs, err := d.openLogs()
	if err != nil {
		return nil, err
	}
	defer logs.Close()
	// 2. A copy of the root's mounts that is attached nowhere: on the node they are nosuid and nodev, in a container they
	// must not be. But who must not make devices can't bring them along in his image either.
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
	if err := d.spawn(p, tree, given, logs); err != nil {
		return nil, errors.Join(err, p.undo())
	}
	// The supervisor has them now. A descriptor of ours would keep the container from unmounting them.
	given.close()
	// 5. The command.
	if err := p.launch(ctx, config); err != nil {
		return nil, errors.Join(err, p.undo())
	}
	d.watches.Go(p.watch)
	return p, nil
}

// newProcess makes a process that lives, of a cgroup that becomes its own.
func (d *Driver) newProcess(id int64, group *cgroup.Group) *process {
	p := &process{id: id, group: group, driver: d, version: proto.Version, inUse: map[string]bool{}, log: d.opt.Log, heard: make(chan struct{}), ready: make(chan struct{}), done: make(chan struct{})}
	p.live, p.leave = context.WithCancelCause(context.Background())
	p.over, p.end = context.WithCancel(context.Background())
	return p
}

// run notes what it was started with.
func (p *process) run(config proto.Config) {
	p.config = config
	p.timeout.Store(int64(config.StopTimeout))
	if !config.Systemd { // which tells by itself when it is ready
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
func (d *Driver) spawn(p *process, tree *os.File, given trees, logs *os.File) error {
	ours, theirs, err := controlPair("supervisor")
	if err != nil {
		return err
	}
	defer theirs.Close()
	p.control = ours
	socket, err := d.listen(p.id, logs)
	if err != nil {
		return fmt.Errorf("make the socket of the supervisor: %w", err)
	}
	defer socket.Close()
	files := make([]*os.File, proto.SupervisorSocket+1)
	files[proto.SupervisorProgram] = d.opt.Program
	files[proto.SupervisorControl] = theirs
	files[proto.SupervisorRoot] = tree
	files[proto.SupervisorCgroup] = p.group.File()
	files[proto.SupervisorLogs] = logs
	files[proto.SupervisorSocket] = socket
	err = d.opt.Failpoint.Do("supervisor start", func() (err error) {
		p.supervisor, err = d.nursery.Start("/proc/self/fd/"+strconv.Itoa(proto.SupervisorProgram),
			supervisorArgs(p.id),
			&os.ProcAttr{
				// Where every program gets huge pages, as on Debian, the heap would take two of them: 4 MiB, not 0.6.
				Env:   []string{"GOMAXPROCS=1", "GODEBUG=disablethp=1"},
				Files: append(files, given...), // from proto.SupervisorBinds on
				Sys:   &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(d.supervisors.Dir)},
			})
		return err
	})
	if err != nil {
		return fmt.Errorf("start supervisor: %w", d.noGroup(err))
	}
	return nil
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
	return []string{"imageapi-init", proto.ModeSupervisor, groupName(id)}
}

// controlPair makes the socket to a program of ours, and the end for that.
func controlPair(name string) (ours, theirs *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	if err := unix.SetNonblock(pair[0], true); err != nil { // only then it has deadlines
		unix.Close(pair[0])
		unix.Close(pair[1])
		return nil, nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(pair[0]), name), os.NewFile(uintptr(pair[1]), name), nil
}

// launch tells the supervisor what to run and waits until it runs.
func (p *process) launch(ctx context.Context, config proto.Config) error {
	expire := func() { _ = p.control.SetReadDeadline(time.Unix(1, 0)) }
	defer context.AfterFunc(ctx, expire)()
	if _, err := p.control.Write(config.Message()); err != nil {
		return fmt.Errorf("talk to supervisor: %w", err)
	}
	kind, fields, err := p.receive()
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errs.New(errs.Deadline, "start %q: deadline exceeded: %w", config.Args[0], context.Cause(ctx))
	case err != nil:
		return fmt.Errorf("talk to supervisor: %w", err)
	case kind == proto.Failed:
		failure, err := proto.ParseFailure(fields)
		if err != nil {
			return fmt.Errorf("talk to supervisor: %w", err)
		}
		return explain(failure)
	case kind != proto.Started:
		return fmt.Errorf("talk to supervisor: unexpected message %q", kind)
	}
	started, err := proto.ParseStart(fields)
	if err != nil {
		return fmt.Errorf("talk to supervisor: %w", err)
	}
	p.pid = started.PID
	p.holdFirst()
	return nil
}

// undo takes away what a failed start has made. The supervisor goes first: it could else clone a process after
// the cgroup was killed.
func (p *process) undo() error {
	defer p.group.Close()
	defer p.first.Close() // nil is fine
	if p.control != nil {
		defer p.control.Close()
	}
	if p.supervisor != nil {
		_ = p.supervisor.Kill() // it may have ended by itself
		if _, err := p.supervisor.Wait(); err != nil {
			return fmt.Errorf("wait for supervisor: %w", err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
	defer cancel()
	if err := errors.Join(p.group.Kill(), p.group.WaitEmpty(ctx)); err != nil {
		return err
	}
	return errors.Join(p.group.Remove(), p.driver.unlisten(p.id))
}
