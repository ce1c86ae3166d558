// Package keeper starts companions, processes that outlive the daemon, and finds them again: supervisors of containers, and keepers that
// serve devices. Package wire draws the messages, package companion is the other side.
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

	"github.com/kraken-hpc/imageapi/internal/proc/spawn"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
)

// ErrNone is the error for a companion that does not exist.
var ErrNone = errors.New("no keeper")

// Registry starts and finds the companions of one directory. It is safe for concurrent use.
type Registry struct {
	Role      string                                                                   // "keeper" or "supervisor", for messages and failpoints
	Dir       string                                                                   // of sockets and exit records; root's, and private
	Launch    func(path string, argv []string, attr *os.ProcAttr) (*os.Process, error) // as os.StartProcess; files 0 to 2 are nil and become /dev/null
	Cgroup    func() (*os.File, error)                                                 // the directory of the cgroup that they are born in; nil, or a nil file, for the daemon's
	Failpoint failpoint.Hook
}

// Spec describes a companion.
type Spec struct {
	Name    string   // unique in its directory, such as "12"
	Program *os.File // executed by its descriptor
	Args    []string // after the program's name: by the first the program knows its role, and the last is the name
	Env     []string
	Files   []*os.File // from wire.FirstFD on
	Run     []string   // the fields of the configuration
	Flags   uintptr    // further flags of clone(2), such as CLONE_NEWNS
}

// Start starts a companion and sends its configuration. The caller then receives Ready or Failed. If Start fails nothing is left.
func (r *Registry) Start(spec Spec) (_ *Keeper, err error) {
	if err := r.Forget(spec.Name); err != nil {
		return nil, err
	}
	dir, err := os.Open(r.Dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start %s: %w", r.Role, err), r.Forget(spec.Name))
		}
	}()
	socket, err := r.listen(dir, spec.Name)
	if err != nil {
		return nil, err
	}
	defer socket.Close()
	ours, theirs, err := spawn.Pair(r.Role)
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	k := &Keeper{role: r.Role, name: spec.Name, conn: ours}
	if err := r.spawn(k, spec, append([]*os.File{nil, nil, nil, spec.Program, theirs, socket, dir}, spec.Files...)); err != nil {
		k.Close()
		return nil, err
	}
	if err := k.Send(wire.Message{Kind: wire.Run, Fields: spec.Run}); err != nil {
		_ = k.Kill(context.Background())
		k.Close()
		return nil, err
	}
	return k, nil
}

func (r *Registry) spawn(k *Keeper, spec Spec, files []*os.File) error {
	return r.Failpoint.Do(r.Role+" start", func() error {
		fd := -1
		attr := &os.ProcAttr{Env: spec.Env, Files: files, Sys: &syscall.SysProcAttr{Setsid: true, PidFD: &fd, Cloneflags: spec.Flags}}
		if r.Cgroup != nil {
			group, err := r.Cgroup()
			if err != nil {
				return err
			}
			if group != nil {
				attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(group.Fd())
			}
		}
		argv := append([]string{filepath.Base(spec.Program.Name())}, spec.Args...)
		p, err := r.Launch(fmt.Sprintf("/proc/self/fd/%d", wire.ProgramFD), argv, attr)
		if err != nil {
			return err
		}
		return k.hold(fd, p)
	})
}

// inDir is the address of a socket in an open directory, whose path may be longer than addresses are (unix(7)).
func inDir(dir *os.File, name string) *unix.SockaddrUnix {
	return &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), socketName(name))}
}

func socketName(name string) string { return name + ".sock" }

// listen makes the socket that later daemons connect to. The companion inherits it, so that a later daemon finds it at any moment of its
// life.
func (r *Registry) listen(dir *os.File, name string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	socket := os.NewFile(uintptr(fd), socketName(name))
	err = r.Failpoint.Do(r.Role+" socket", func() error {
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

// Find connects to the companion of an earlier daemon. The error is ErrNone if it ended; Ended tells how then. It is
// context.DeadlineExceeded if it does not answer.
func (r *Registry) Find(ctx context.Context, name string) (*Keeper, error) {
	dir, err := os.Open(r.Dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, ErrNone
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	conn, err := spawn.NewConn(fd, r.Role)
	if err != nil {
		return nil, err
	}
	k := &Keeper{role: r.Role, name: name, conn: conn}
	if err := k.meet(ctx, unix.Connect(fd, inDir(dir, name))); err != nil {
		k.Close()
		return nil, err
	}
	return k, nil
}

// meet receives Hello over a connection.
func (k *Keeper) meet(ctx context.Context, connected error) error {
	switch {
	case errors.Is(connected, unix.ENOENT) || errors.Is(connected, unix.ECONNREFUSED):
		return ErrNone
	case errors.Is(connected, unix.EAGAIN): // its queue is full
		return fmt.Errorf("connect to %s %s: %w", k.role, k.name, context.DeadlineExceeded)
	case connected != nil:
		return fmt.Errorf("connect to %s %s: %w", k.role, k.name, connected)
	}
	for k.pidfd.File == nil {
		m, err := k.Receive(ctx)
		if errors.Is(err, io.EOF) {
			return ErrNone // it ended with our connection in its queue
		}
		if err != nil {
			return err
		}
		m.Close() // what a later version says before
	}
	return nil
}

// Names lists the companions that have a socket in the directory: those that live, and those that were killed.
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

// Owns reports whether a process is a companion of this directory, of any name if name is empty. It has the directory open, which
// distinguishes it from one of another directory. So it is found where it does not answer.
func (r *Registry) Owns(pid int, name string) bool {
	dir, err := os.Stat(r.Dir)
	if err != nil {
		return false
	}
	open, err := os.Stat(fmt.Sprintf("/proc/%d/fd/%d", pid, wire.RecordFD))
	args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && os.SameFile(open, dir) && (name == "" || strings.HasSuffix(string(args), "\x00"+name+"\x00"))
}

// Ended reads the exit record of a companion; false if it has written none.
func (r *Registry) Ended(name string) (m wire.Message, ok bool, err error) {
	data, err := os.ReadFile(filepath.Join(r.Dir, wire.RecordName(name)))
	if errors.Is(err, os.ErrNotExist) {
		return m, false, nil
	}
	if err != nil {
		return m, false, err
	}
	m, err = wire.Decode(data)
	return m, err == nil, err
}

// Forget removes the files of a companion that ended.
func (r *Registry) Forget(name string) error {
	return errors.Join(r.Unlink(name), r.remove(wire.RecordName(name)+wire.RecordNew), r.remove(wire.RecordName(name)))
}

// Unlink removes the socket of a companion that ended. Its exit record stays.
func (r *Registry) Unlink(name string) error { return r.remove(socketName(name)) }

func (r *Registry) remove(file string) error {
	path := filepath.Join(r.Dir, file)
	if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	err := r.Failpoint.Do(r.Role+" forget", func() error { return os.Remove(path) })
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// Keeper is a connection to a companion. Send and Receive may be called at the same time, each by one goroutine; the rest by any.
type Keeper struct {
	role, name string
	conn       spawn.Conn
	pidfd      spawn.PIDFD
	child      *os.Process   // nil if an earlier daemon started it
	reaped     chan struct{} // closed when the child was reaped
	how        string        // it ended; to be read after reaped

	closing sync.Once
}

// hold takes the descriptor of a child, and reaps that whenever it ends.
func (k *Keeper) hold(fd int, child *os.Process) error {
	var err error
	if k.pidfd, err = spawn.NewPIDFD(fd); err != nil {
		return err
	}
	own, err := k.pidfd.Again()
	if err != nil {
		return err
	}
	k.child, k.reaped = child, make(chan struct{})
	go func() {
		defer close(k.reaped)
		defer own.Close()
		_ = own.Wait(context.Background()) // by the poller: Wait of the process alone would take a thread
		k.how = exitReason(child.Wait())
	}()
	return nil
}

func exitReason(state *os.ProcessState, err error) string {
	if err != nil {
		return fmt.Sprintf("is gone: %v", err)
	}
	status, ok := state.Sys().(syscall.WaitStatus)
	if ok && status.Signaled() {
		return fmt.Sprintf("was killed by signal %d", status.Signal())
	}
	return fmt.Sprintf("ended with status %d", state.ExitCode())
}

// How waits for the end of the process, which has ended its connection, and returns how it ended: the kernel tells that of a child only.
func (k *Keeper) How() string {
	if k.child == nil {
		_ = k.ended(context.Background())
		return "is gone"
	}
	<-k.reaped
	return k.how
}

// Process returns a descriptor of the process, which belongs to k.
func (k *Keeper) Process() spawn.PIDFD { return k.pidfd }

// Name returns the companion's name.
func (k *Keeper) Name() string { return k.name }

// Send sends a message.
func (k *Keeper) Send(m wire.Message) error {
	if err := k.conn.Send(m); err != nil {
		return fmt.Errorf("send to %s %s: %w", k.role, k.name, err)
	}
	return nil
}

// Receive waits for a message. When the process is gone the error is io.EOF.
func (k *Keeper) Receive(ctx context.Context) (wire.Message, error) {
	stop := spawn.Expire(ctx, k.conn.File)
	m, err := k.conn.Receive()
	stop()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = context.Cause(ctx)
	}
	if err != nil || m.Kind != wire.Hello {
		return m, err
	}
	if len(m.Files) == 1 && k.pidfd.File == nil { // it names itself by a descriptor: a number could be another process's by now
		k.pidfd, err = spawn.NewPIDFD(m.Files[0])
		m.Files = nil
	}
	m.Close()
	return m, err
}

// Alive reports whether the process has not ended.
func (k *Keeper) Alive() bool { return !k.pidfd.Ended() }

// Stop asks the companion to end, and kills it if it has not before ctx ends.
func (k *Keeper) Stop(ctx context.Context) error {
	_ = k.Send(wire.Message{Kind: wire.Stop}) // it may have ended already
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
	if err := k.pidfd.Signal(unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill %s %s: %w", k.role, k.name, err)
	}
	if err := k.ended(ctx); err != nil {
		return fmt.Errorf("%s %s was killed and does not end: %w", k.role, k.name, err)
	}
	if k.child != nil {
		<-k.reaped
	}
	return nil
}

// ended waits for the end of the process. Other calls may wait with other deadlines, of which a file has one.
func (k *Keeper) ended(ctx context.Context) error {
	own, err := k.pidfd.Again()
	if err != nil {
		return err
	}
	defer own.Close()
	return own.Wait(ctx)
}

// Close closes the connection; a Receive that waits fails. The companion continues.
func (k *Keeper) Close() {
	k.closing.Do(func() {
		k.conn.Close()
		if k.pidfd.File != nil {
			k.pidfd.Close()
		}
	})
}
