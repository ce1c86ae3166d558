package main

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/container/proto"
)

// link is a supervisor's tie to the daemon, and to the next one when that is gone.
type link struct {
	mu     sync.Mutex   // nobody is told anything while another is
	config proto.Config // for the next one, with the present stop timeout
	socket int          // to the present daemon, or -1
	state  proto.Hello  // what the next one is told
	losing string       // why output is being lost, or empty
	warned time.Time    // when a daemon was last told that output begins to be lost
}

// warnEvery is the least time between two warnings about lost output: a file system that is nearly full is full again and again.
const warnEvery = time.Minute

func newLink(config proto.Config) *link {
	return &link{config: config, socket: proto.SupervisorControl, state: proto.Hello{Version: proto.Version}}
}

// started tells that the command runs.
func (l *link) started(pid int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state.PID, l.state.Since = pid, time.Now()
	send(l.socket, proto.Start{PID: pid, Since: l.state.Since}.Message())
	l.warn()
}

// up tells that the container is ready.
func (l *link) up() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state.Up = true
	send(l.socket, proto.Encode(proto.Up))
}

// loses tells that output begins to be lost, or, if reason is empty, that no more is.
func (l *link) loses(reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.losing = reason
	l.warn()
}

// warn tells the daemon that output is being lost, if it is; mu is held. It does not wait for a daemon that does not listen: the
// container would wait, too. A daemon that waits for the start is told afterwards.
func (l *link) warn() {
	if l.losing == "" || l.state.PID == 0 || !l.warned.IsZero() && time.Since(l.warned) < warnEvery {
		return
	}
	l.warned = time.Now()
	_ = unix.Sendto(l.socket, proto.Encode(proto.Losing, l.losing), unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT, nil)
}

// asked notes that the container was asked to stop, and tells whether it was the first time.
func (l *link) asked() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state.Asked {
		return false
	}
	l.state.Asked = true
	return true
}

// setStopTimeout notes another stop timeout, for the next daemon too.
func (l *link) setStopTimeout(fields []string) {
	if d, err := proto.ParseStopTimeout(fields); err == nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.config.StopTimeout = d
	}
}

// stopTimeout returns how long the container has to end when it is asked to stop.
func (l *link) stopTimeout() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.config.StopTimeout
}

// history is what has been until now.
func (l *link) history() proto.Hello {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state
}

// last tells how it ended. It keeps the lock: this process is about to end, and who comes now learns that from the file.
func (l *link) last(message []byte) {
	l.mu.Lock()
	send(l.socket, message)
}

// listen closes stop at the first Stop of any daemon, and gives launch the descriptors of each command. It ends when no other daemon can come.
func (l *link) listen(stop chan<- struct{}, launch func(files []int)) {
	for buf, socket := make([]byte, 64), l.socket; ; {
		kind, fields, files, err := receiveFiles(socket, buf)
		switch {
		case err != nil || kind == 0 && len(files) == 0:
			if socket = l.next(); socket < 0 {
				return
			}
		case kind == proto.Launch && len(files) == proto.ExecFiles:
			launch(files)
			files = nil
		case kind == proto.StopTimeout:
			l.setStopTimeout(fields)
		case kind == proto.Stop && l.asked():
			close(stop)
		}
		for _, file := range files {
			unix.Close(file)
		}
	}
}

// next waits for another daemon, and tells that one what has been. It returns -1 if none can come.
func (l *link) next() (socket int) {
	l.mu.Lock()
	unix.Close(l.socket)
	l.socket = -1
	l.mu.Unlock()
	for {
		socket, _, err := unix.Accept4(proto.SupervisorSocket, unix.SOCK_CLOEXEC)
		switch {
		case err == unix.EINTR || err == unix.ECONNABORTED:
			continue
		case err != nil:
			return -1
		case !fromRoot(socket):
			unix.Close(socket)
			continue
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.socket = socket
		send(socket, l.state.Message())
		send(socket, l.config.Message())
		l.warned = time.Time{}
		l.warn()
		return socket
	}
}

// fromRoot tells whether root is at the other end.
func fromRoot(socket int) bool {
	peer, err := unix.GetsockoptUcred(socket, unix.SOL_SOCKET, unix.SO_PEERCRED)
	return err == nil && peer.Uid == 0
}
