package main

import (
	"context"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/container/proto"
	"github.com/kraken-hpc/imageapi/internal/sys/cgroup"
)

// command is one that runs in a container beside its first process.
type command struct {
	config proto.Config
	input  int // what becomes standard input, or -1
	null   int // /dev/null
	group  cgroup.Dir
	ended  chan struct{} // closed when it has ended or could not be started
	reaped chan struct{} // closed when this process has no child left

	mu     sync.Mutex
	killed bool
	pidfd  int // of the command once there is one, else -1
}

// execute runs a command in a container from its start to its end.
func execute() int {
	config, input, err := receiveRun(proto.ExecControl)
	if err != nil {
		send(proto.ExecControl, failed("read the configuration", "", err).Message())
		return 1
	}
	c := &command{config: config, input: input, group: cgroup.Dir(proto.ExecCgroup), ended: make(chan struct{}), reaped: make(chan struct{}), pidfd: -1}
	go c.run()
	c.obey()
	<-c.ended
	if len(os.Args) > 3 && os.Args[3] == proto.ExecSupervised {
		return 0 // what it has left running is the supervisor's
	}
	// What it has left running goes on, and its cgroup can go when that has ended. At the latest the daemon ends this process.
	discard(proto.ExecOutputEnd, proto.ExecErrorsEnd)
	_ = c.group.WaitEmpty(context.Background()) // it fails if the group is gone
	<-c.reaped
	return 0
}

// run starts the command, waits for its end and tells how it went.
func (c *command) run() {
	defer close(c.reaped)
	runtime.LockOSThread() // and with that this goroutine ends
	exit, failure := c.live()
	close(c.ended) // before it is told: from then on nobody may kill what it left running
	message := exit.Message()
	if failure != nil {
		message = failure.Message()
	}
	send(proto.ExecControl, message)
	reap(-1)
}

// obey does what the daemon asks for. It returns when that has read the output, or is gone.
func (c *command) obey() {
	for buf := make([]byte, 64); ; {
		kind, _, err := receive(proto.ExecControl, buf)
		if err == nil && kind == proto.Release {
			return
		}
		if err == nil && kind == proto.Hangup {
			c.hangUp()
			continue
		}
		c.kill()
		if err != nil || kind != proto.Stop {
			return
		}
	}
}

// kill ends all that the command has started, unless it has ended by itself. What leaves its cgroup is not its own any more,
// but for the command itself.
func (c *command) kill() {
	select {
	case <-c.ended:
		return
	default:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.killed = true
	c.strike()
}

// hangUp tells all that the command has started that nobody listens any more. It does nothing once the command has ended.
func (c *command) hangUp() {
	select {
	case <-c.ended:
	default:
		_ = c.group.HangUp() // as for strike
	}
}

// strike is called again by whoever has made a process: one that was forked after the first strike must not live.
func (c *command) strike() {
	_ = c.group.Kill() // all that could fail is that the group is gone, and then so is the container
	if c.pidfd >= 0 {
		_ = unix.PidfdSendSignal(c.pidfd, unix.SIGKILL, nil, 0)
	}
}

func (c *command) forked(pidfd int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pidfd = pidfd
	if c.killed {
		c.strike()
	}
}

// live is the life of the command.
func (c *command) live() (exit proto.Exit, failure *proto.Failure) {
	// 1. What this process has in memory is not for the container, into which copies of it go. And what loses its parent comes
	// to it, where there is no pid namespace whose first process would take it.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return exit, failed("become undumpable", "", err)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return exit, failed("become a subreaper", "", err)
	}
	// The copy inherits what this thread has, and inside no file of the image is to be trusted for that.
	if failure := forget(); failure != nil {
		return exit, failure
	}
	// 2. The descriptors that the inside starts with. Only this process and its copies have them.
	status, failure := c.arrange()
	if failure != nil {
		return exit, failure
	}
	defer unix.Close(status)
	// 3. A process inside, and nothing here that keeps its end from being seen.
	pid, failure := c.join()
	c.settle()
	if failure != nil {
		return exit, failure
	}
	// 4. The command.
	send(status, c.config.Message())
	failure = executed(status, nil)
	if failure != nil {
		c.kill() // as a rule it is ending already
	} else {
		send(proto.ExecControl, proto.Encode(proto.Started))
	}
	how := reap(pid)
	if failure != nil && failure.Reason == proto.Died {
		failure.Detail = describe(how)
	}
	return exitOf(how), failure
}

// arrange puts descriptors where the inside expects them, for programs to inherit, and returns the socket to the inside.
func (c *command) arrange() (status int, failure *proto.Failure) {
	const high = 64 // where no descriptor is that is passed on
	null, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, high)
	if err != nil {
		return -1, failed("keep /dev/null", "", err)
	}
	c.null = null
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, failed("make a socket", "", err)
	}
	if pair[0] == proto.InitStatus { // the lowest that was free
		pair[0], pair[1] = pair[1], pair[0]
	}
	moves := [][2]int{{pair[1], proto.InitStatus}, {proto.ExecOutput, 1}, {proto.ExecErrors, 2}}
	if c.input >= 0 { // before InitStatus, whose number it may have
		moves = append([][2]int{{c.input, 0}}, moves...)
	}
	for _, move := range moves {
		if err := inherit(move[0], move[1]); err != nil {
			return -1, failed("pass on a descriptor", "", err)
		}
	}
	return pair[0], nil
}

// inherit makes a descriptor be another one that programs inherit.
func inherit(from, to int) error {
	if from == to {
		_, err := unix.FcntlInt(uintptr(from), unix.F_SETFD, 0)
		return err
	}
	if err := unix.Dup3(from, to, 0); err != nil {
		return err
	}
	return unix.Close(from)
}

// settle gives up what is the inside's.
func (c *command) settle() {
	unix.Close(proto.InitStatus)
	unix.Close(proto.ExecFirst)
	for standard := range 3 {
		_ = unix.Dup3(c.null, standard, unix.O_CLOEXEC)
	}
	unix.Close(c.null)
}

// discard reads pipes until nobody can write to them any more: what a command has left running would else be killed by its next
// word (SIGPIPE), or wait for ever to be read.
func discard(pipes ...int) {
	buf := make([]byte, 16<<10)
	for len(pipes) > 0 {
		fds := make([]unix.PollFd, len(pipes))
		for i, pipe := range pipes {
			fds[i] = unix.PollFd{Fd: int32(pipe), Events: unix.POLLIN}
		}
		if _, err := unix.Poll(fds, -1); err != nil {
			continue // EINTR
		}
		pipes = pipes[:0]
		for _, f := range fds {
			if f.Revents == 0 || more(int(f.Fd), buf) {
				pipes = append(pipes, int(f.Fd))
			}
		}
	}
}

// more reads from a pipe and tells whether there may be more to come.
func more(pipe int, buf []byte) bool {
	n, err := unix.Read(pipe, buf)
	return n > 0 || err == unix.EAGAIN || err == unix.EINTR
}
