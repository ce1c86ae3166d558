package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/proc/wire"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
)

// ErrNone says that no process keeps what was asked for.
var ErrNone = errors.New("no keeper")

// A Starter starts programs as os.StartProcess does; Files 0 to 2 of the attributes are nil and become /dev/null.
type Starter interface {
	Start(path string, argv []string, attr *os.ProcAttr) (*os.Process, error)
}

// Registry starts and finds the keepers of one run directory. It is safe for concurrent use.
type Registry struct {
	Dir       string // of sockets and exit records; root's, and private
	Starter   Starter
	Cgroup    *os.File // the directory of the cgroup that keepers are born in; nil for the daemon's
	Failpoint failpoint.Hook
}

// Spec describes a keeper.
type Spec struct {
	Name    string   // unique in its run directory, such as "12"
	Program *os.File // executed by its descriptor
	Args    []string // after the program's name: by the first the program knows its role, and the last is to be the name
	Env     []string
	Files   []*os.File // from FirstFD on
	Run     []string   // the fields of the configuration
	Flags   uintptr    // further flags of clone(2), such as CLONE_NEWNS
}

// Start starts a keeper and sends its configuration. The caller then receives Ready or Failed. If Start fails nothing is left.
func (r *Registry) Start(spec Spec) (_ *Keeper, err error) {
	if err := r.Forget(spec.Name); err != nil {
		return nil, err
	}
	dir, err := os.Open(r.Dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	socket, err := r.listen(dir, spec.Name)
	if err != nil {
		return nil, err
	}
	defer socket.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, errors.Join(os.NewSyscallError("socketpair", err), r.Forget(spec.Name))
	}
	theirs := os.NewFile(uintptr(pair[1]), "keeper")
	defer theirs.Close()
	k := &Keeper{name: spec.Name, socket: pair[0], pidfd: -1}
	if err := r.spawn(k, spec, append([]*os.File{nil, nil, nil, spec.Program, theirs, socket, dir}, spec.Files...)); err != nil {
		k.Close()
		return nil, errors.Join(fmt.Errorf("start a keeper: %w", err), r.Forget(spec.Name))
	}
	if err := wire.Send(k.socket, wire.Message{Kind: Run, Fields: spec.Run}); err != nil {
		_ = k.Kill(context.Background())
		k.Close()
		return nil, errors.Join(fmt.Errorf("configure a keeper: %w", err), r.Forget(spec.Name))
	}
	return k, nil
}

func (r *Registry) spawn(k *Keeper, spec Spec, files []*os.File) error {
	return r.Failpoint.Do("keeper start", func() error {
		attr := &os.ProcAttr{Env: spec.Env, Files: files, Sys: &syscall.SysProcAttr{Setsid: true, PidFD: &k.pidfd, Cloneflags: spec.Flags}}
		if r.Cgroup != nil {
			attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(r.Cgroup.Fd())
		}
		argv := append([]string{filepath.Base(spec.Program.Name())}, spec.Args...)
		p, err := r.Starter.Start(fmt.Sprintf("/proc/self/fd/%d", ProgramFD), argv, attr)
		if err != nil {
			return err
		}
		go func() { _, _ = p.Wait() }() // it is our child: reap it whenever it ends
		return nil
	})
}

// inDir is the address of a socket in an open directory, whose path may be longer than addresses are (unix(7)).
func inDir(dir *os.File, name string) *unix.SockaddrUnix {
	return &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), socketName(name))}
}

// listen makes the socket that later daemons connect to. The keeper inherits it, so that there is no moment in which a later daemon
// does not find a keeper that begins its work.
func (r *Registry) listen(dir *os.File, name string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	socket := os.NewFile(uintptr(fd), socketName(name))
	err = r.Failpoint.Do("keeper socket", func() error {
		const backlog = 8 // daemons that came and went while another one was connected
		return errors.Join(
			os.NewSyscallError("fchmod", unix.Fchmod(fd, 0o600)), // bind(2) makes the file with the mode of the socket
			os.NewSyscallError("bind", unix.Bind(fd, inDir(dir, name))),
			os.NewSyscallError("listen", unix.Listen(fd, backlog)))
	})
	if err != nil {
		socket.Close()
		return nil, err
	}
	return socket, nil
}

// Find connects to the keeper of an earlier daemon. The error is ErrNone if it ended; Ended tells how then.
func (r *Registry) Find(ctx context.Context, name string) (*Keeper, error) {
	dir, err := os.Open(r.Dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, ErrNone
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	k := &Keeper{name: name, socket: fd, pidfd: -1}
	switch err := unix.Connect(fd, inDir(dir, name)); {
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED):
		k.Close()
		return nil, ErrNone
	case err != nil:
		k.Close()
		return nil, fmt.Errorf("connect to keeper %s: %w", name, err)
	}
	m, err := k.Receive(ctx)
	if errors.Is(err, io.EOF) {
		err = ErrNone // it ended with our connection in its queue
	}
	if err == nil && (m.Kind != Hello || k.pidfd < 0) {
		m.Close()
		err = fmt.Errorf("keeper %s does not introduce itself", name)
	}
	if err != nil {
		k.Close()
		return nil, err
	}
	return k, nil
}

// Names lists the keepers that have a socket in the directory: those that live, and those that were killed.
func (r *Registry) Names() ([]string, error) {
	entries, err := os.ReadDir(r.Dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".sock"); ok {
			names = append(names, name)
		}
	}
	return names, err
}

// Ended reads the exit record of a keeper; false if it has written none.
func (r *Registry) Ended(name string) (fields []string, ok bool, err error) {
	data, err := os.ReadFile(filepath.Join(r.Dir, RecordName(name)))
	if errors.Is(err, os.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	m, err := wire.Decode(data)
	return m.Fields, err == nil, err
}

// Forget removes the files of a keeper that ended.
func (r *Registry) Forget(name string) error {
	var failed error
	for _, file := range []string{socketName(name), RecordName(name), RecordName(name) + ".new"} {
		path := filepath.Join(r.Dir, file)
		if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
			continue
		}
		err := r.Failpoint.Do("keeper forget", func() error { return os.Remove(path) })
		if !errors.Is(err, os.ErrNotExist) {
			failed = errors.Join(failed, err)
		}
	}
	return failed
}

// Keeper is a connection to a keeper. Send and Receive may be called at the same time, each by one goroutine; the rest by any.
type Keeper struct {
	name   string
	socket int
	pidfd  int

	closing sync.Once
}

// PIDFD returns the descriptor of the process, or -1 if it has not introduced itself. It belongs to the Keeper.
func (k *Keeper) PIDFD() int { return k.pidfd }

// Name returns the keeper's name.
func (k *Keeper) Name() string { return k.name }

// Send sends a message.
func (k *Keeper) Send(m wire.Message) error {
	if err := wire.Send(k.socket, m); err != nil {
		return fmt.Errorf("send to keeper %s: %w", k.name, err)
	}
	return nil
}

// Receive waits for a message. When the keeper is gone the error is io.EOF.
func (k *Keeper) Receive(ctx context.Context) (wire.Message, error) {
	if err := k.readable(ctx); err != nil {
		return wire.Message{}, err
	}
	m, err := wire.Receive(k.socket)
	if err != nil || m.Kind != Hello {
		return m, err
	}
	if len(m.Files) == 1 && k.pidfd < 0 { // it names itself by a descriptor: a number could be another process's by now
		k.pidfd, m.Files = m.Files[0], nil
	}
	m.Close()
	return m, nil
}

// readable waits until a message is there.
func (k *Keeper) readable(ctx context.Context) error {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	defer unix.Close(wake)
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		_, _ = unix.Write(wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	})
	defer func() {
		if !stop() {
			<-stopped
		}
	}()
	for {
		wait := []unix.PollFd{{Fd: int32(k.socket), Events: unix.POLLIN}, {Fd: int32(wake), Events: unix.POLLIN}}
		_, err := unix.Poll(wait, -1)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return os.NewSyscallError("poll", err)
		case wait[0].Revents != 0:
			return nil
		case wait[1].Revents != 0:
			return context.Cause(ctx)
		}
	}
}

// Alive tells whether the process has not ended.
func (k *Keeper) Alive() bool {
	wait := []unix.PollFd{{Fd: int32(k.pidfd), Events: unix.POLLIN}}
	n, err := unix.Poll(wait, 0)
	return err == nil && n == 0
}

// Stop asks the keeper to end, and kills it if it has not before ctx ends.
func (k *Keeper) Stop(ctx context.Context) error {
	_ = k.Send(wire.Message{Kind: Stop}) // it may have ended already
	if err := k.ended(ctx); err == nil {
		return nil
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), dying)
	defer cancel()
	return k.Kill(last)
}

// dying is how long a killed process may take to end.
const dying = 2 * time.Second

// Kill ends the process and waits for its end.
func (k *Keeper) Kill(ctx context.Context) error {
	if err := unix.PidfdSendSignal(k.pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill keeper %s: %w", k.name, err)
	}
	if err := k.ended(ctx); err != nil {
		return fmt.Errorf("keeper %s was killed and does not end: %w", k.name, err)
	}
	return nil
}

// ended waits for the end of the process.
func (k *Keeper) ended(ctx context.Context) error {
	end := &Keeper{socket: k.pidfd}
	return end.readable(ctx)
}

// Close closes the connection, when no other call is under way: their contexts end them. The keeper continues.
func (k *Keeper) Close() {
	k.closing.Do(func() {
		unix.Close(k.socket)
		if k.pidfd >= 0 {
			unix.Close(k.pidfd)
		}
	})
}
