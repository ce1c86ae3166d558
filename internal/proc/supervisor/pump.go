package supervisor

import (
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// pump copies the container's output to its log.
type pump struct {
	in     int // the pipe's end for reading, or a terminal's master
	quit   int // an eventfd: nobody writes any more
	log    *logFile
	filter func([]byte) []byte // what of the output goes to the log, or nil for all
	ended  chan struct{}
	err    error // the first error of writing the log; to be read after ended

	mu      sync.Mutex // protects viewers
	viewers []int      // pipes that get all that is read
}

// newPump starts a pump and returns the pipe's end for writing. Only finish gives back what it holds.
func newPump(log *logFile) (p *pump, out int, err error) {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return nil, -1, err
	}
	if p, err = pumpFrom(ends[0], log, nil); err != nil {
		unix.Close(ends[0])
		unix.Close(ends[1])
		return nil, -1, err
	}
	return p, ends[1], nil
}

// pumpFrom starts a pump that reads from in, which is its own from then on, and passes what it reads through filter.
func pumpFrom(in int, log *logFile, filter func([]byte) []byte) (*pump, error) {
	quit, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(in, true); err != nil {
		unix.Close(quit)
		return nil, err
	}
	p := &pump{in: in, quit: quit, log: log, filter: filter, ended: make(chan struct{})}
	go p.run()
	return p, nil
}

// finish returns when all that was written before is in the log, and tells what kept it from being complete. It
// does not wait for the end of file: a process that escaped the container may hold the pipe for ever.
func (p *pump) finish() string {
	_, _ = unix.Write(p.quit, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	<-p.ended
	p.log.flush()
	unix.Close(p.in)
	unix.Close(p.quit)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, pipe := range p.viewers {
		unix.Close(pipe)
	}
	p.viewers = nil
	if p.err != nil {
		return p.err.Error()
	}
	return ""
}

func (p *pump) run() {
	defer close(p.ended)
	buf := make([]byte, 16<<10)
	for quit := false; ; {
		n, err := unix.Read(p.in, buf)
		switch {
		case n > 0:
			p.pass(buf[:n])
			if p.filter != nil {
				p.write(p.filter(buf[:n]))
			} else {
				p.write(buf[:n])
			}
		case err == unix.EINTR:
		case err == unix.EAGAIN && !quit:
			quit = p.wait()
		default: // end of file, or nothing left of what was written
			return
		}
	}
}

// wait returns when there is something to read, or true when there will be nothing more.
func (p *pump) wait() bool {
	fds := []unix.PollFd{{Fd: int32(p.in), Events: unix.POLLIN}, {Fd: int32(p.quit), Events: unix.POLLIN}}
	_, _ = unix.Poll(fds, -1)
	return fds[1].Revents != 0
}

// write appends to the log. If that fails the output is lost, but the container goes on: it must not stand still
// because a disk is full.
func (p *pump) write(b []byte) {
	if err := p.log.write(b); err != nil && p.err == nil {
		p.err = err
	}
}

// show passes on all that is read from now on to a pipe, which belongs to p then.
func (p *pump) show(pipe int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.viewers = append(p.viewers, pipe)
}

// pass writes to the viewers. One that does not read misses a part: the container does not wait for it.
func (p *pump) pass(b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.viewers = slices.DeleteFunc(p.viewers, func(pipe int) bool {
		_, err := unix.Write(pipe, b)
		if err == nil || err == unix.EAGAIN || err == unix.EINTR {
			return false
		}
		unix.Close(pipe) // its reader is gone
		return true
	})
}
