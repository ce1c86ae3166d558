// Package supervisor is the process next to a container: it starts the container's first process, writes its log, ends it, and knows how it
// ended. It is a companion of the daemon and outlives it.
package supervisor

import (
	"bytes"
	"context"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/proc/child"
	"github.com/kraken-hpc/imageapi/internal/proc/companion"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
	"github.com/kraken-hpc/imageapi/internal/sys/cgroup"
	"github.com/kraken-hpc/imageapi/internal/sys/descendants"
)

// supervisor holds what outlives the start of the command.
type supervisor struct {
	name   string // of the container
	config wire.Config
	group  cgroup.Dir
	pid    int
	pidfd  int
	log    *pump
	daemon *link

	commands commands
	console  atomic.Pointer[pump] // what reads the console; nil without one

	// With Config.Systemd only, else -1.
	terminal int // keeps the console from being at its end while nothing in the container has it open
	notify   int // the socket of sd_notify(3)
}

// Main runs a container from its start to its end. It returns the exit status.
func Main(name string) int {
	c, run, err := companion.Begin(name)
	if err != nil {
		return 1
	}
	config, err := wire.ParseConfig(run)
	if err != nil {
		c.Failed(wire.Fail("read the configuration", "", err).Message().Fields...)
		return 1
	}
	s := &supervisor{name: name, config: config, group: cgroup.Dir(wire.SupervisorCgroup), daemon: newLink(c, config.StopTimeout), terminal: -1, notify: -1}
	go s.daemon.listen(s.launch, s.attach)
	if failure := s.start(); failure != nil {
		c.Failed(failure.Message().Fields...)
		return 1
	}
	started := wire.Started{PID: s.pid, Since: time.Now(), Config: config}
	c.ReadyWith(s.pidfd, started.Fields()...)
	exit := s.watch()
	s.record(&exit, started.Since)
	return 0
}

// start makes the first process and returns when it has executed the command. If it fails nothing is left but
// the empty cgroup.
func (s *supervisor) start() *wire.Failure {
	// What loses its parent comes to us, where there is no pid namespace whose first process would take it.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return wire.Fail("become a subreaper", "", err)
	}
	file, err := openLog(wire.RecordFD, s.config.LogName, s.config.LogSize)
	if err != nil {
		return wire.Fail("open the log", s.config.LogName, err)
	}
	file.losing = s.daemon.loses
	log, out, err := newPump(file)
	if err != nil {
		return wire.Fail("make a pipe", "", err)
	}
	s.log = log
	status, failure := s.spawn(out)
	unix.Close(out)
	s.letGo() // the container alone holds its trees now
	if failure != nil {
		log.finish()
		return failure
	}
	defer unix.Close(status)
	_ = wire.Send(status, s.config.Message())
	if failure := child.Executed(status, s.adopt); failure != nil {
		_ = s.group.Kill() // if it is ending already this does not change how
		if how := child.Reap(s.pid); failure.Reason == wire.Died {
			failure.Detail = child.Describe(how)
		}
		_ = s.group.WaitEmpty(context.Background())
		s.log.finish()
		return failure
	}
	return nil
}

// letGo closes the root and the trees of the node.
func (s *supervisor) letGo() {
	unix.Close(wire.SupervisorRoot)
	for i := range s.config.Trees() {
		unix.Close(wire.SupervisorBinds + i)
	}
}

// spawn clones the init stage into its cgroup and namespaces and returns the socket to it.
func (s *supervisor) spawn(out int) (status int, failure *wire.Failure) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, wire.Fail("make a socket", "", err)
	}
	defer unix.Close(pair[1])
	s.pidfd = -1
	group, err := s.group.Birthplace()
	if err != nil {
		unix.Close(pair[0])
		return -1, wire.Fail("open the cgroup", "", err)
	}
	defer group.Close()
	// A cgroup namespace is rooted where its maker is, not where the child goes: the init stage makes that itself.
	flags := s.config.Namespaces &^ unix.CLONE_NEWCGROUP
	files := []uintptr{0, uintptr(out), uintptr(out), wire.ProgramFD, uintptr(pair[1]), wire.SupervisorRoot}
	for i := range s.config.Trees() {
		files = append(files, uintptr(wire.SupervisorBinds+i))
	}
	s.pid, err = syscall.ForkExec("/proc/self/fd/"+strconv.Itoa(wire.InitProgram), []string{"imageapi-init", wire.ModeInit}, &syscall.ProcAttr{
		Env:   []string{"GOMAXPROCS=1"},
		Files: files,
		Sys: &syscall.SysProcAttr{
			Setsid:      true,
			Cloneflags:  flags,
			UseCgroupFD: true,
			CgroupFD:    int(group),
			PidFD:       &s.pidfd,
		},
	})
	if err != nil {
		unix.Close(pair[0])
		return -1, wire.Fail("clone the first process into its namespaces", "", err)
	}
	return pair[0], nil
}

// watch returns when nothing of the container is left but its empty cgroup.
func (s *supervisor) watch() wire.Exit {
	ended, reaped := make(chan wire.Exit, 1), make(chan struct{})
	go s.reapAll(ended, reaped)
	if s.notify >= 0 {
		go heed(s.notify, s.pid, s.daemon.up)
		defer func() { _ = unix.Shutdown(s.notify, unix.SHUT_RDWR) }() // ends heed
	}

	var timeout <-chan time.Time
	stop := s.daemon.stop
	for {
		select {
		case <-stop:
			stop = nil
			_ = s.group.Thaw()
			_ = unix.PidfdSendSignal(s.pidfd, unix.Signal(s.config.StopSignal), nil, 0)
			timeout = time.After(s.daemon.now().StopTimeout)
		case <-timeout:
			s.strike()
		case exit := <-ended:
			_ = s.group.Kill()
			_ = s.group.WaitEmpty(context.Background())
			s.clear(reaped)
			exit.LogErr = s.log.finish()
			return exit
		}
	}
}

// strike kills all of the container: what is in its group, and what has left that, which still descends from this process.
func (s *supervisor) strike() {
	_ = s.group.Kill()
	_ = descendants.Kill(unix.Getpid(), nil)
}

// clear returns when no child is left: the group is empty, but a process may have left it.
func (s *supervisor) clear(reaped <-chan struct{}) {
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for {
		select {
		case <-reaped:
			return
		case <-again.C:
			_ = descendants.Kill(unix.Getpid(), nil)
		}
	}
}

// reapAll reaps all that ends, tells how the first process ended, and ends when no child is left.
func (s *supervisor) reapAll(ended chan<- wire.Exit, reaped chan<- struct{}) {
	defer close(reaped)
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil { // ECHILD
			return
		}
		if pid == s.pid {
			ended <- child.ExitOf(status)
		}
		s.commands.reaped(pid)
	}
}

// plain leaves out the carriage returns that a terminal and those who know that they write to one put into the ends of
// lines.
func plain(b []byte) []byte { return bytes.ReplaceAll(b, []byte{'\r'}, nil) }

// attach shows the console in a pipe, and sends its master through a socket.
func (s *supervisor) attach(socket, pipe int) {
	defer unix.Close(socket)
	console := s.console.Load()
	if console == nil || unix.SetNonblock(pipe, true) != nil || wire.Send(socket, wire.Message{Kind: wire.Console, Files: []int{console.in}}) != nil {
		unix.Close(pipe)
		return
	}
	console.show(pipe)
}
