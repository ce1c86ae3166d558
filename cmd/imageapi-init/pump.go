package main

import (
	"golang.org/x/sys/unix"
)

// pump copies the container's output to its log.
type pump struct {
	in    int // the pipe's end for reading
	quit  int // an eventfd: nobody writes any more
	log   int
	ended chan struct{}
	err   error // the first error of writing the log; to be read after ended
}

// newPump starts a pump and returns the pipe's end for writing. Only finish gives back what it holds.
func newPump(log int) (p *pump, out int, err error) {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return nil, -1, err
	}
	quit, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err == nil {
		err = unix.SetNonblock(ends[0], true)
	}
	if err != nil {
		unix.Close(ends[0])
		unix.Close(ends[1])
		return nil, -1, err
	}
	p = &pump{in: ends[0], quit: quit, log: log, ended: make(chan struct{})}
	go p.run()
	return p, ends[1], nil
}

// finish returns when all that was written before is in the log, and tells what kept it from being complete. It
// does not wait for the end of file: a process that escaped the container may hold the pipe for ever.
func (p *pump) finish() string {
	_, _ = unix.Write(p.quit, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	<-p.ended
	unix.Close(p.in)
	unix.Close(p.quit)
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
			p.write(buf[:n])
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
	for len(b) > 0 {
		n, err := unix.Write(p.log, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			if p.err == nil {
				p.err = err
			}
			return
		}
		b = b[n:]
	}
}
