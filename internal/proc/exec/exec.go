// Package exec brings a command into a container, next to its first process, and is its parent.
package exec

import (
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/proc/child"
	"github.com/kraken-hpc/imageapi/internal/proc/inside"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
	"github.com/kraken-hpc/imageapi/internal/sys/cgroup"
)

// command is one that runs in a container beside its first process.
type command struct {
	config wire.Config
	input  int // what becomes standard input, or -1
	null   int // /dev/null
	group  cgroup.Dir
	ended  chan struct{} // closed when it has ended or could not be started

	mu     sync.Mutex
	killed bool
	pidfd  int // of the command once there is one, else -1
}

// Main runs a command in a container from its start to its end. Then the processes that it has left running are the supervisor's.
func Main() int {
	config, input, err := wire.ReceiveConfig(wire.ExecControl)
	if err != nil {
		_ = wire.Send(wire.ExecControl, wire.Fail("read the configuration", "", err).Message())
		return 1
	}
	c := &command{config: config, input: input, group: cgroup.Dir(wire.ExecCgroup), ended: make(chan struct{}), pidfd: -1}
	go c.run()
	c.obey()
	<-c.ended
	return 0
}

// run starts the command, waits for its end and tells how it went.
func (c *command) run() {
	runtime.LockOSThread() // and with that this goroutine ends
	exit, failure := c.live()
	close(c.ended) // before it is told: from then on nobody may kill what it left running
	message := exit.Message()
	if failure != nil {
		message = failure.Message()
	}
	_ = wire.Send(wire.ExecControl, message)
	child.Reap(-1)
}

// obey does what the daemon asks for. It returns when that has read the output, or is gone.
func (c *command) obey() {
	for {
		m, err := wire.Receive(wire.ExecControl)
		m.Close()
		switch {
		case err == nil && m.Kind == wire.Release:
			return
		case err == nil && m.Kind == wire.Hangup:
			c.hangUp()
			continue
		}
		c.kill()
		if err != nil || m.Kind != wire.Stop {
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
func (c *command) live() (exit wire.Exit, failure *wire.Failure) {
	// 1. What this process has in memory is not for the container, into which copies of it go. And what loses its parent comes
	// to it, where there is no pid namespace whose first process would take it.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return exit, wire.Fail("become undumpable", "", err)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return exit, wire.Fail("become a subreaper", "", err)
	}
	// The copy inherits what this thread has, and inside no file of the image is to be trusted for that.
	if failure := inside.Forget(); failure != nil {
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
	_ = wire.Send(status, c.config.Message())
	failure = child.Executed(status, nil)
	if failure != nil {
		c.kill() // as a rule it is ending already
	} else {
		_ = wire.Send(wire.ExecControl, wire.Message{Kind: wire.Ready})
	}
	how := child.Reap(pid)
	if failure != nil && failure.Reason == wire.Died {
		failure.Detail = child.Describe(how)
	}
	return child.ExitOf(how), failure
}

// arrange puts descriptors where the inside expects them, for programs to inherit, and returns the socket to the inside.
func (c *command) arrange() (status int, failure *wire.Failure) {
	const high = 64 // where no descriptor is that is passed on
	null, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, high)
	if err != nil {
		return -1, wire.Fail("keep /dev/null", "", err)
	}
	c.null = null
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, wire.Fail("make a socket", "", err)
	}
	if pair[0] == wire.InitStatus { // the lowest that was free
		pair[0], pair[1] = pair[1], pair[0]
	}
	moves := [][2]int{{pair[1], wire.InitStatus}, {wire.ExecOutput, 1}, {wire.ExecErrors, 2}}
	if c.input >= 0 { // before InitStatus, whose number it may have
		moves = append([][2]int{{c.input, 0}}, moves...)
	}
	for _, move := range moves {
		if err := inherit(move[0], move[1]); err != nil {
			return -1, wire.Fail("pass on a descriptor", "", err)
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
	unix.Close(wire.InitStatus)
	unix.Close(wire.ExecFirst)
	for standard := range 3 {
		_ = unix.Dup3(c.null, standard, unix.O_CLOEXEC)
	}
	unix.Close(c.null)
}
