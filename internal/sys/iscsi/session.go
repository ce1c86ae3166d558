package iscsi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Session is a session with a target. From Open until Close it logs in again by itself whenever the connection is lost.
type Session struct {
	env    Env
	conf   Config
	mark   string // of the owner
	conn   connection
	events *events

	state  atomic.Int32
	end    context.CancelFunc // of what work does
	work   sync.WaitGroup     // keep and guard
	look   chan struct{}      // has a token if the units are to be looked at
	mu     sync.Mutex         // protects change and units
	change chan struct{}      // closed when state changes
	units  map[int]*guarded   // by LUN
	closed progress
}

// progress is how far Close has come: it can be called again.
type progress struct{ kept, loggedOut, stopped, conn, session bool }

// Open logs in to a target. If it fails nothing is left, in the kernel or at the target.
func Open(ctx context.Context, env Env, conf Config) (*Session, error) {
	if err := env.load(ctx, transport, moduleName); err != nil {
		return nil, err
	}
	k, err := openKernel(env.Failpoint)
	if err != nil {
		return nil, err
	}
	o, err := env.owner()
	if err != nil {
		return nil, err
	}
	if err := conf.checkFree(); err != nil {
		return nil, err
	}
	s := newSession(env, conf, o.mark)
	if s.events, err = listen(); err != nil {
		return nil, err
	}
	err = conf.reach(ctx, func(ctx context.Context, tcp *net.TCPConn) error { return s.first(ctx, k, o, tcp) })
	if err != nil {
		s.events.close()
		return nil, err
	}
	s.begin(ctx)
	return s, nil
}

func newSession(env Env, conf Config, mark string) *Session {
	return &Session{env: env, conf: conf, mark: mark, look: make(chan struct{}, 1), change: make(chan struct{}), units: map[int]*guarded{}}
}

// begin has the session log in again by itself, until Close.
func (s *Session) begin(ctx context.Context) {
	keep, end := context.WithCancel(context.WithoutCancel(ctx))
	s.end = end
	s.work.Go(func() {
		defer end() // of a session that another program has ended there is nothing to guard
		s.keep(keep)
	})
	s.work.Go(func() { s.guard(keep) })
}

// first makes the session in the kernel and logs in, or leaves nothing.
func (s *Session) first(ctx context.Context, k kernel, o owner, tcp *net.TCPConn) (err error) {
	if s.conn, err = k.create(ctx, o, s.conf.MaxCommands); err != nil {
		return err
	}
	s.events.session = s.conn.session
	if err := s.conn.createConn(); err != nil {
		return errors.Join(err, s.conn.destroy())
	}
	if err := s.connect(ctx, tcp); err != nil {
		return errors.Join(err, s.conn.end(), s.conn.destroyConn(), s.conn.destroy())
	}
	return nil
}

// connect brings the session up over a new connection to the target:
//
//  1. the kernel takes the connection, and then the names by which the session is known again;
//  2. the login, through the kernel, which numbers the commands;
//  3. what was negotiated;
//  4. the kernel lets I/O flow.
func (s *Session) connect(ctx context.Context, tcp *net.TCPConn) error {
	s.events.drain()
	if err := s.conn.bind(tcp); err != nil {
		return err
	}
	if err := s.conn.set(s.names()); err != nil {
		return err
	}
	n, err := s.conf.login(ctx, s.exchange)
	if err != nil {
		return late(ctx, err)
	}
	if err := s.conn.set(s.params(n, tcp)); err != nil {
		return err
	}
	return s.conn.start()
}

// late says so where the target took too long.
func late(ctx context.Context, err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return fail(Deadline, "the target does not answer the login in time: %w", context.Cause(ctx))
	}
	return err
}

// exchange sends a PDU and waits for the next one of the target. The events are collected since before the session was
// made: an answer that is here before the kernel has confirmed the request is not lost.
func (s *Session) exchange(ctx context.Context, p pdu) (pdu, error) {
	if err := s.sendInTurn(ctx, p); err != nil {
		return pdu{}, err
	}
	for {
		e, err := s.events.next(ctx)
		switch {
		case err != nil:
			return pdu{}, err
		case e.received != nil:
			return *e.received, nil
		case e.missed:
			return pdu{}, fail(Deadline, "too many events of other sessions at a time: try again")
		case e.lost != 0:
			return pdu{}, fail(Remote, "%w (kernel error %d)", errClosed, e.lost)
		}
	}
}

// sendInTurn sends a login request. The kernel handles one at a time, and tells us of the answer to the one before a moment
// before it is done with it: until then it refuses the next with EPERM. Nothing announces the end of that moment.
func (s *Session) sendInTurn(ctx context.Context, p pdu) error {
	const tries, interval = 200, 5 * time.Millisecond
	for range tries {
		err := s.conn.send(p)
		if !errors.Is(err, unix.EPERM) {
			return err
		}
		select {
		case <-time.After(interval):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return s.conn.send(p)
}

// names are those of the session. That of the target has another place than usual: see the package's description.
func (s *Session) names() []param {
	return []param{{paramInitiator, s.conf.Initiator}, {paramInterface, owner{mark: s.mark}.iface(s.conf.Target)}}
}

// params are what the kernel is told about the session.
func (s *Session) params(n negotiated, tcp *net.TCPConn) []param {
	number := func(i int) string { return strconv.Itoa(i) }
	yes := func(b bool) string {
		if b {
			return "1"
		}
		return "0"
	}
	const pingSeconds = "5"
	all := []param{
		{paramMaxReceive, number(maxReceive)},
		{paramMaxSend, number(n.maxSend)},
		{paramHeaderDigest, yes(n.headerDigest)},
		{paramDataDigest, yes(n.dataDigest)},
		{paramInitialR2T, yes(n.initialR2T)},
		{paramMaxR2T, number(n.maxR2T)},
		{paramImmediate, yes(n.immediate)},
		{paramFirstBurst, number(n.firstBurst)},
		{paramMaxBurst, number(n.maxBurst)},
		{paramDataPDUInOrder, "1"},
		{paramDataSeqInOrder, "1"},
		{paramErrorRecovery, "0"},
		{paramExpStatSN, strconv.FormatUint(uint64(n.statSN), 10)},
		{paramReplacement, number(int(s.conf.Replacement / time.Second))},
		{paramPingTimeout, pingSeconds},
		{paramPingAfter, pingSeconds},
	}
	if n.group != "" {
		all = append(all, param{paramGroup, n.group})
	}
	if to, ok := tcp.RemoteAddr().(*net.TCPAddr); ok {
		all = append(all, param{paramPersistentHost, to.IP.String()}, param{paramPersistentPort, number(to.Port)})
	}
	return all
}

// State is what the session is doing now. It never waits.
func (s *Session) State() State {
	state := State(s.state.Load())
	if state == Recovering && attribute(sessionDir(s.conn.session), "state") == "FREE" {
		return Failed // the kernel has waited for as long as it should
	}
	return state
}

// Digests reports whether headers and data have a CRC32C in the session as it is now. ok is false if the kernel does not tell.
func (s *Session) Digests() (header, data, ok bool) {
	dir := fmt.Sprintf("/sys/class/iscsi_connection/connection%d:%d", s.conn.session, theConn)
	h, d := attribute(dir, "header_digest"), attribute(dir, "data_digest")
	return h == "1", d == "1", h != "" && d != ""
}

func (s *Session) setState(to State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.moveTo(to)
}

// fail says that I/O does not wait any more, unless the session came back in this moment.
func (s *Session) fail() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if State(s.state.Load()) == Recovering {
		s.moveTo(Failed)
	}
}

// moveTo needs mu.
func (s *Session) moveTo(to State) {
	s.state.Store(int32(to))
	close(s.change)
	s.change = make(chan struct{})
	if s.env.Changed != nil {
		s.env.Changed()
	}
}

// Settle waits until the session does not recover: I/O then does not hang for long.
func (s *Session) Settle(ctx context.Context) error {
	for {
		s.mu.Lock()
		change := s.change
		s.mu.Unlock()
		if s.State() != Recovering {
			return nil
		}
		select {
		case <-change:
		case <-ctx.Done():
			return fail(Deadline, "the connection to target %s is lost and was not back in time: %w", s.conf.Target, context.Cause(ctx))
		}
	}
}

// logoutTime is how long a target may take to let us go.
const logoutTime = 5 * time.Second

// Close logs out and takes the session away. Its devices must be gone: the kernel would take them from whoever uses them.
// If it fails it can be called again. It goes in the reverse order of Open:
//
//  1. nobody logs in again any more;
//  2. the target is told;
//  3. the connection, then the session.
func (s *Session) Close(ctx context.Context) error {
	done := &s.closed
	if !done.kept {
		s.end()
		s.work.Wait()
		done.kept = true
	}
	if !done.loggedOut {
		s.logOut(ctx)
		done.loggedOut = true
	}
	for _, step := range []struct {
		done *bool
		act  func() error
	}{
		{&done.stopped, s.conn.end},
		{&done.conn, s.conn.destroyConn},
		{&done.session, s.conn.destroy},
	} {
		if *step.done {
			continue
		}
		if err := step.act(); err != nil {
			return fmt.Errorf("log out of %s: %w", s.conf.Target, err)
		}
		*step.done = true
	}
	s.events.close()
	return nil
}

// logOut logs out of the target. If that fails the target finds out by the end of the connection.
func (s *Session) logOut(ctx context.Context) {
	if s.State() != LoggedIn {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, logoutTime)
	defer cancel()
	s.events.drain()
	err := s.conn.send(logout())
	for err == nil {
		var e event
		if e, err = s.events.next(ctx); err == nil && (e.lost != 0 || e.received != nil && e.received.opcode() == opLogoutReply) {
			return
		}
	}
	s.env.Log.Warn("iSCSI logout failed", keyTarget, s.conf.Target, keyError, err)
}
