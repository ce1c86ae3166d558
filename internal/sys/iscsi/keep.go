package iscsi

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// keep logs in again whenever the connection is lost, until ctx ends.
func (s *Session) keep(ctx context.Context) {
	defer func() {
		if !s.exists() {
			s.lose()
		}
	}()
	for {
		if s.State() == LoggedIn {
			why, err := s.watch(ctx)
			switch {
			case ctx.Err() != nil, errors.Is(err, errDestroyed):
				return
			case err != nil:
				s.env.Log.Error("iSCSI session events lost", keyTarget, s.conf.Target, keyError, err)
				if !s.listenAgain(ctx) {
					return
				}
				if !s.down() {
					continue
				}
				why = "found so"
			}
			s.env.Log.Warn("iSCSI connection lost", keyTarget, s.conf.Target, keyReason, why)
			s.setState(Recovering)
		}
		if !s.recover(ctx) {
			return
		}
		s.env.Log.Info("iSCSI session recovered", keyTarget, s.conf.Target)
		s.setState(LoggedIn)
	}
}

// watch returns when the connection is lost, and why.
func (s *Session) watch(ctx context.Context) (why string, err error) {
	for {
		e, err := s.events.next(ctx)
		switch {
		case err != nil:
			return "", err
		case e.destroyed:
			return "", errDestroyed
		case e.lost != 0:
			return "kernel error " + strconv.Itoa(int(e.lost)), nil
		case e.received != nil && e.received.endsConnection():
			return "the target says so", nil
		case e.missed && s.down():
			return "found so", nil
		}
	}
}

// listenAgain replaces the socket of the events after a failure. It tries as long as it takes, and reports whether it did before ctx ended:
// without events a lost connection is not noticed.
func (s *Session) listenAgain(ctx context.Context) bool {
	for wait := s.env.Backoff.Min; ; wait = min(2*wait, s.env.Backoff.Max) {
		select {
		case <-time.After(jitter(wait)):
		case <-ctx.Done():
			return false
		}
		news, err := listen()
		if err == nil {
			s.events.replace(news)
			return s.exists()
		}
		s.env.Log.Error("iSCSI session events unavailable, retrying", keyTarget, s.conf.Target, keyError, err)
	}
}

// errDestroyed is why a session is not watched any more that somebody else has ended.
var errDestroyed = errors.New("another program has ended it")

// exists reports whether the kernel has the session.
func (s *Session) exists() bool {
	_, err := os.Stat(sessionDir(s.conn.session))
	return err == nil
}

// lose is the end of a session that is gone from the kernel: there is nothing to hear of it any more, and no I/O.
func (s *Session) lose() {
	s.setState(Failed)
	s.events.close()
}

// down reports whether the kernel knows the session as not logged in.
func (s *Session) down() bool {
	return attribute(sessionDir(s.conn.session), "state") != "LOGGED_IN"
}

// recover logs in again, as often as it takes, and reports whether it did before ctx ended. Whatever the target's reason to
// refuse is, it may be over the next time.
func (s *Session) recover(ctx context.Context) bool {
	failed := time.AfterFunc(s.conf.Replacement, s.fail)
	defer failed.Stop()
	if !s.conf.Auth.Known() {
		s.env.Log.Error("iSCSI login impossible, secret unknown", keyTarget, s.conf.Target)
		<-ctx.Done()
		return false
	}
	wait := s.env.Backoff.Min
	for {
		err := s.again(ctx)
		if err == nil {
			return true
		}
		if ctx.Err() != nil || !s.exists() {
			return false
		}
		if s.State() == Failed {
			s.fail() // of a session that was recovered the kernel alone knows when its time began
		}
		interval := jitter(wait)
		s.env.Log.Warn("iSCSI login failed, retrying", keyTarget, s.conf.Target, keyError, err, keyDelay, interval)
		wait = min(2*wait, s.env.Backoff.Max)
		select {
		case <-time.After(interval):
		case <-ctx.Done():
			return false
		}
	}
}

// jitter returns a time between a half and one and a half of d.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d+1) }

// again is one attempt at all portals. I/O waits while the connection is stopped.
func (s *Session) again(ctx context.Context) error {
	if err := s.conn.stop(stopAWhile); err != nil {
		return err
	}
	s.remember()
	return s.conf.reach(ctx, func(ctx context.Context, tcp *net.TCPConn) error {
		if len(s.right()) == 0 {
			return s.reconnect(ctx, tcp)
		}
		if err := s.verify(ctx, tcp); err != nil {
			return err
		}
		tcp.Close() // logged out: the target, too, is about to close it
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", tcp.RemoteAddr().String())
		if err != nil {
			return err
		}
		defer conn.Close() // the kernel has a reference of its own
		return s.reconnect(ctx, conn.(*net.TCPConn))
	})
}

func (s *Session) reconnect(ctx context.Context, tcp *net.TCPConn) error {
	err := s.connect(ctx, tcp)
	if err != nil {
		_ = s.conn.stop(stopAWhile) // or the next one can't be bound
	}
	return err
}

const sessionPrefix = "/sys/class/iscsi_session/session"

// sessionDir is where sysfs tells about a session.
func sessionDir(session uint32) string {
	return sessionPrefix + strconv.FormatUint(uint64(session), 10)
}

// attribute reads an attribute in sysfs, "" if it can't be.
func attribute(dir, name string) string {
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}
