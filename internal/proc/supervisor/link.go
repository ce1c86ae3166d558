package supervisor

import (
	"sync"
	"time"

	"github.com/kraken-hpc/imageapi/internal/proc/companion"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// link is the state of the container, as the daemon and the next one know it.
type link struct {
	*companion.Companion
	stop chan struct{} // closed at the first Stop

	mu     sync.Mutex // protects what follows
	state  wire.State
	warned time.Time // when a daemon was last told that output begins to be lost
}

// warnEvery is the least time between two warnings about lost output: a file system that is nearly full is full again and again.
const warnEvery = time.Minute

func newLink(c *companion.Companion, timeout time.Duration) *link {
	l := &link{Companion: c, stop: make(chan struct{}), state: wire.State{StopTimeout: timeout}}
	c.Note(l.state.Fields()...)
	return l
}

// change changes the state and reports it, or only notes it for the next daemon.
func (l *link) change(report func(*wire.State) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if report(&l.state) {
		l.Status(l.state.Fields()...)
	} else {
		l.Note(l.state.Fields()...)
	}
}

// up reports that the container is ready.
func (l *link) up() {
	l.change(func(s *wire.State) bool { s.Up = true; return true })
}

// loses reports that output begins to be lost, or, if reason is empty, that no more is.
func (l *link) loses(reason string) {
	l.change(func(s *wire.State) bool {
		s.Losing = reason
		if reason == "" || time.Since(l.warned) < warnEvery {
			return false
		}
		l.warned = time.Now()
		return true
	})
}

// now returns the present state.
func (l *link) now() wire.State {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state
}

// listen does what daemons ask for, and gives launch the descriptors of each command, attach those of each client of the console. It ends when
// no other daemon can come.
func (l *link) listen(launch func(files []int), attach func(socket, pipe int)) {
	for m := range l.Commands() {
		switch {
		case m.Kind == wire.Launch && len(m.Files) == wire.ExecFiles:
			launch(m.Files)
			m.Files = nil
		case m.Kind == wire.Attach && len(m.Files) == 2:
			attach(m.Files[0], m.Files[1])
			m.Files = nil
		case m.Kind == wire.StopTimeout:
			if d, err := wire.ParseStopTimeout(m); err == nil {
				l.change(func(s *wire.State) bool { s.StopTimeout = d; return false })
			}
		case m.Kind == wire.Stop && !l.now().Asked:
			l.change(func(s *wire.State) bool { s.Asked = true; return false })
			close(l.stop)
		}
		m.Close()
	}
}

// record completes the exit of a container, and writes the exit record. If that cannot be written, a daemon that comes later finds
// no process that knows.
func (s *supervisor) record(exit *wire.Exit, since time.Time) {
	exit.Since, exit.Asked = since, s.daemon.now().Asked
	if kills, ok := s.group.Entry("memory.events", "oom_kill"); ok {
		exit.OOM = new(kills > 0)
	}
	_ = s.daemon.End(exit.Fields()...)
}

// adopt makes the console what the log is filled from, in place of the pipe, and takes over the descriptors.
func (s *supervisor) adopt(master, terminal, notify int) error {
	s.terminal, s.notify = terminal, notify
	pump, err := pumpFrom(master, s.log.log, plain)
	if err != nil {
		return err
	}
	s.console.Store(pump)
	s.log.finish() // only this program had the pipe
	s.log = pump
	return nil
}
