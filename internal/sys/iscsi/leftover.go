package iscsi

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Leftover is a session that an earlier server on the same run directory has left in the kernel. There it lives on without it: it
// has the connection to the target, sends and answers pings and moves data. When the connection is lost, I/O waits until
// somebody logs in again, at most for Config.Replacement.
type Leftover struct {
	// Initiator and Target are its names. A session that was cut off before it had a connection has none.
	Initiator, Target string

	conn connection
	mark string
}

// Leftovers returns the sessions that earlier servers have left, if this one has made none yet: they are told by their owner alone.
func (e Env) Leftovers() ([]Leftover, error) {
	if _, err := os.Stat(transport); err != nil {
		return nil, nil // nobody can have made one
	}
	k, err := openKernel(e.Failpoint)
	if err != nil {
		return nil, err
	}
	o, err := e.owner()
	if err != nil {
		return nil, err
	}
	var left []Leftover
	for _, s := range inKernel() {
		l := Leftover{mark: o.mark, conn: connection{kernel: k, session: s.number, host: s.host}}
		switch {
		case s.owner == o.mark:
			l.Initiator, l.Target = s.initiator, s.target
		case s.target != "" || s.creator != int32(o.port):
			continue
		}
		left = append(left, l)
	}
	return left, nil
}

// Recover makes it a Session of this server, which logs in again by itself whenever the connection is lost, or is lost already. It
// changes nothing in the kernel and does not wait for the target.
func (l Leftover) Recover(ctx context.Context, env Env, conf Config) (*Session, error) {
	s, err := l.hold(env, conf)
	if err != nil {
		return nil, err
	}
	s.begin(ctx)
	return s, nil
}

// Finish makes it a Session that is good for nothing but to be closed.
func (l Leftover) Finish(env Env) (*Session, error) {
	s, err := l.hold(env, Config{Initiator: l.Initiator, Target: l.Target})
	if err != nil {
		return nil, err
	}
	s.closed.kept = true
	if s.State() == Recovering {
		s.setState(Failed) // nobody logs in again
	}
	return s, nil
}

// hold finds out what it is doing. Events are collected from before that on, so that no change is missed.
func (l Leftover) hold(env Env, conf Config) (*Session, error) {
	news, err := listen()
	if err != nil {
		return nil, err
	}
	news.session = l.conn.session
	s := newSession(env, conf, l.mark)
	s.conn, s.events = l.conn, news
	if s.down() {
		s.state.Store(int32(Recovering))
	}
	return s, nil
}

// Ending reports whether its connection was closed for good: that is the begin of its end.
func (l Leftover) Ending() bool {
	dir := fmt.Sprintf("/sys/class/iscsi_connection/connection%d:%d", l.conn.session, theConn)
	_, err := os.Stat(dir)
	return err != nil || attribute(dir, "state") == "down"
}

// present is a session in the kernel, of whomever, as sysfs tells of it.
type present struct {
	number, host      uint32
	initiator, target string // empty if the kernel was not told
	owner             string // of a session of a server such as this: its mark
	creator           int32  // the netlink port of the program that has created it
}

// String names it as sysfs does.
func (p present) String() string { return filepath.Base(sessionDir(p.number)) }

// inKernel returns all sessions.
func inKernel() (all []present) {
	dirs, _ := filepath.Glob(sessionPrefix + "*")
	for _, dir := range dirs {
		number, err := strconv.ParseUint(strings.TrimPrefix(dir, sessionPrefix), 10, 32)
		if err != nil {
			continue
		}
		s := present{number: uint32(number), host: hostOf(dir), initiator: told(dir, "initiatorname"), target: told(dir, "targetname")}
		if s.target == "" {
			s.target, s.owner, _ = strings.Cut(told(dir, "ifacename"), " ")
		}
		creator, _ := strconv.ParseInt(attribute(dir, "creator"), 10, 32)
		s.creator = int32(creator)
		all = append(all, s)
	}
	return all
}

// hostOf returns the number of a session's SCSI host. Its directory is .../hostN/sessionM/iscsi_session/sessionM.
func hostOf(dir string) uint32 {
	path, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return 0
	}
	host := filepath.Base(filepath.Join(path, "../../.."))
	number, _ := strconv.ParseUint(strings.TrimPrefix(host, "host"), 10, 32)
	return uint32(number)
}

// told reads a parameter that the kernel may not have been told.
func told(dir, name string) string {
	text := attribute(dir, name)
	if text == "(null)" || text == "<NULL>" {
		return ""
	}
	return text
}

// checkFree makes sure that the kernel has no session between the two names: one of another program, or of another server. The
// target would end it for ours.
func (c *Config) checkFree() error {
	for _, s := range inKernel() {
		switch {
		case s.initiator != c.Initiator || s.target != c.Target:
		case s.owner != "":
			return fail(Conflict, "log in to %s as %s: %s between these two belongs to a server with another run directory: "+
				"detach it there, or use another initiator name",
				c.Target, c.Initiator, s)
		default:
			return fail(Conflict, "log in to %s as %s: another program has %s between these two: "+
				"log that one out (iscsiadm -m node -T %s -u), or use another initiator name",
				c.Target, c.Initiator, s, c.Target)
		}
	}
	return nil
}
