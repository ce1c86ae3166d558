package main

import (
	"context"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/container/proto"
	"github.com/kraken-hpc/imageapi/internal/sys/cgroup"
	"github.com/kraken-hpc/imageapi/internal/sys/descendants"
)

// supervisor holds what outlives the start of the command.
type supervisor struct {
	config proto.Config
	group  cgroup.Dir
	pid    int
	pidfd  int
	log    *pump
	daemon *link

	commands commands

	// With Config.Systemd only, else -1.
	terminal int // keeps the console from being at its end while nothing in the container has it open
	notify   int // the socket of sd_notify(3)
}

// supervise runs a container from its start to its end.
func supervise() int {
	config, err := receiveConfig(proto.SupervisorControl)
	if err != nil {
		send(proto.SupervisorControl, failed("read the configuration", "", err).Message())
		return 1
	}
	s := &supervisor{config: config, group: cgroup.Dir(proto.SupervisorCgroup), terminal: -1, notify: -1}
	s.daemon = newLink(config)
	stop := make(chan struct{})
	go s.daemon.listen(stop, s.commands.launch)
	if failure := s.start(); failure != nil {
		s.daemon.last(failure.Message())
		return 1
	}
	s.daemon.started(s.pid)
	exit := s.watch(stop)
	s.record(&exit)
	s.daemon.last(exit.Message())
	return 0
}

// start makes the first process and returns when it has executed the command. If it fails nothing is left but
// the empty cgroup.
func (s *supervisor) start() *proto.Failure {
	// What loses its parent comes to us, where there is no pid namespace whose first process would take it.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return failed("become a subreaper", "", err)
	}
	if err := unix.Unlinkat(proto.SupervisorLogs, s.config.ExitName, 0); err != nil && err != unix.ENOENT {
		return failed("remove", s.config.ExitName, err)
	}
	file, err := openLog(proto.SupervisorLogs, s.config.LogName, s.config.LogSize)
	if err != nil {
		return failed("open the log", s.config.LogName, err)
	}
	file.losing = s.daemon.loses
	log, out, err := newPump(file)
	if err != nil {
		return failed("make a pipe", "", err)
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
	send(status, s.config.Message())
	if failure := executed(status, s.adopt); failure != nil {
		_ = s.group.Kill() // if it is ending already this does not change how
		if how := reap(s.pid); failure.Reason == proto.Died {
			failure.Detail = describe(how)
		}
		_ = s.group.WaitEmpty(context.Background())
		s.log.finish()
		return failure
	}
	return nil
}

// letGo closes the root and the trees of the node.
func (s *supervisor) letGo() {
	unix.Close(proto.SupervisorRoot)
	for i := range s.config.Trees() {
		unix.Close(proto.SupervisorBinds + i)
	}
}

// spawn clones the init stage into its cgroup and namespaces and returns the socket to it.
func (s *supervisor) spawn(out int) (status int, failure *proto.Failure) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, failed("make a socket", "", err)
	}
	defer unix.Close(pair[1])
	s.pidfd = -1
	group, err := s.group.Birthplace()
	if err != nil {
		unix.Close(pair[0])
		return -1, failed("open the cgroup", "", err)
	}
	defer group.Close()
	// A cgroup namespace is rooted where its maker is, not where the child goes: the init stage makes that itself.
	flags := s.config.Namespaces &^ unix.CLONE_NEWCGROUP
	files := []uintptr{0, uintptr(out), uintptr(out), proto.SupervisorProgram, uintptr(pair[1]), proto.SupervisorRoot}
	for i := range s.config.Trees() {
		files = append(files, uintptr(proto.SupervisorBinds+i))
	}
	s.pid, err = syscall.ForkExec("/proc/self/fd/"+strconv.Itoa(proto.InitProgram), []string{"imageapi-init", proto.ModeInit}, &syscall.ProcAttr{
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
		return -1, failed("clone the first process into its namespaces", "", err)
	}
	return pair[0], nil
}

// watch returns when nothing of the container is left but its empty cgroup.
func (s *supervisor) watch(stop <-chan struct{}) proto.Exit {
	ended, reaped := make(chan proto.Exit, 1), make(chan struct{})
	go s.reapAll(ended, reaped)
	if s.notify >= 0 {
		go heed(s.notify, s.pid, s.daemon.up)
		defer func() { _ = unix.Shutdown(s.notify, unix.SHUT_RDWR) }() // ends heed
	}

	var timeout <-chan time.Time
	for {
		select {
		case <-stop:
			stop = nil
			_ = s.group.Thaw()
			_ = unix.PidfdSendSignal(s.pidfd, unix.Signal(s.config.StopSignal), nil, 0)
			timeout = time.After(s.daemon.stopTimeout())
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
func (s *supervisor) reapAll(ended chan<- proto.Exit, reaped chan<- struct{}) {
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
			ended <- exitOf(status)
		}
		s.commands.reaped(pid)
	}
}
