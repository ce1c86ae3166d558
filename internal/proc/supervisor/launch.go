package supervisor

import (
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// commands are those that run in the container beside its first process. Each has a parent, this program in mode ModeExec, until it has ended and its
// output was read. What it leaves running is then this process's: its children, and the pipes that they may still write to.
type commands struct {
	mu    sync.Mutex
	pipes map[int][2]int // the ends for reading, by the command's parent
	drain drain
}

// launch starts the parent of a command, with the descriptors that came with Launch.
func (s *supervisor) launch(files []int) {
	c := &s.commands
	c.mu.Lock() // it may be reaped at once
	defer c.mu.Unlock()
	kept := len(files) - 2
	pid, err := s.startParent(files[:kept])
	for _, file := range files[:kept] {
		unix.Close(file)
	}
	pipes := [2]int(files[kept:])
	if err != nil { // the daemon sees that nobody has the other end of its socket
		unix.Close(pipes[0])
		unix.Close(pipes[1])
		return
	}
	if c.pipes == nil {
		c.pipes = map[int][2]int{}
	}
	c.pipes[pid] = pipes
}

func (s *supervisor) startParent(files []int) (pid int, err error) {
	free := ^uintptr(0)
	all := []uintptr{0, 1, 2, uintptr(files[0]), free} // ExecProgram, and what is InitStatus
	for _, file := range files[1:] {
		all = append(all, uintptr(file))
	}
	return syscall.ForkExec("/proc/self/fd/"+strconv.Itoa(wire.ExecProgram), []string{"imageapi-init", wire.ModeExec, s.name}, &syscall.ProcAttr{
		Env:   []string{"GOMAXPROCS=1", "GODEBUG=disablethp=1"},
		Files: all,
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
}

// reaped takes over the pipes of a command whose parent has ended.
func (c *commands) reaped(pid int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	pipes, ok := c.pipes[pid]
	if !ok {
		return
	}
	delete(c.pipes, pid)
	c.drain.add(pipes[0])
	c.drain.add(pipes[1])
}

// drain reads pipes until nobody can write to them any more: what a command has left running would else be killed by its next word
// (SIGPIPE), or wait for ever to be read.
type drain struct {
	started bool
	epoll   int
}

// add gives a pipe to the drain, which closes it at its end.
func (d *drain) add(pipe int) {
	if !d.started {
		epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
		if err != nil {
			unix.Close(pipe)
			return
		}
		d.started, d.epoll = true, epoll
		go drainAll(epoll)
	}
	_ = unix.SetNonblock(pipe, true)
	if unix.EpollCtl(d.epoll, unix.EPOLL_CTL_ADD, pipe, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(pipe)}) != nil {
		unix.Close(pipe)
	}
}

// drainAll reads whatever comes.
func drainAll(epoll int) {
	buf, events := make([]byte, 16<<10), make([]unix.EpollEvent, 16)
	for {
		n, err := unix.EpollWait(epoll, events, -1)
		if err != nil && err != unix.EINTR {
			return
		}
		for _, e := range events[:max(n, 0)] {
			if !more(int(e.Fd), buf) {
				unix.Close(int(e.Fd))
			}
		}
	}
}

// more reads from a pipe and tells whether there may be more to come.
func more(pipe int, buf []byte) bool {
	n, err := unix.Read(pipe, buf)
	return n > 0 || err == unix.EAGAIN || err == unix.EINTR
}
