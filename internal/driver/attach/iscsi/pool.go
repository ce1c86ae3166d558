package iscsi

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/iscsi"
	"github.com/kraken-hpc/imageapi/internal/waits"
)

// pool is the sessions, each shared by the attachments of the target's logical units. An attachment first enters itself
// as a user, then waits for the session's lock. So whoever leaves last, with the lock held, knows that it is the last, and who
// came meanwhile logs in again.
type pool struct {
	env iscsi.Env

	// nameless ends what an earlier daemon had only begun, once; see endNameless.
	nameless sync.Mutex
	looked   bool

	// mu protects all and the fields of the sessions that say so; it is a leaf.
	mu  sync.Mutex
	all map[names]*shared
}

// names tell a session: there is one between an initiator and a target.
type names struct{ initiator, target string }

// shared is a session with its users.
type shared struct {
	names
	// lock holds a token while somebody logs in, compares or logs out.
	lock chan struct{}
	// users are the ids of the attachments by LUN; under pool.mu.
	users map[int]int64
	// session is nil until somebody has logged in. It changes under both lock and pool.mu.
	session *iscsi.Session
	// closing says that a log-out has begun: the session is good for nothing else; under lock.
	closing bool
	// conf is what the session was made with; under lock.
	conf iscsi.Config
}

func newPool(env iscsi.Env) *pool {
	return &pool{env: env, all: map[names]*shared{}}
}

// enter makes an attachment a user. A logical unit has one at a time.
func (p *pool) enter(n names, lun int, id int64) (*shared, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.all[n]
	if s == nil {
		s = &shared{names: n, lock: make(chan struct{}, 1), users: map[int]int64{}}
		p.all[n] = s
	}
	if err := s.free(lun, id); err != nil {
		return nil, err
	}
	s.users[lun] = id
	return s, nil
}

// free makes sure that no other attachment has a logical unit; pool.mu is held.
func (s *shared) free(lun int, id int64) error {
	if owner, taken := s.users[lun]; taken && owner != id {
		return driver.HeldBy(owner, errs.New(errs.Conflict, "attach LUN %d of target %s: attachment %d has this LUN already; use that one, or delete it", lun, s.target, owner))
	}
	return nil
}

// check fails as acquire would before it does anything. known is false if somebody is at the session, who is not waited for.
func (p *pool) check(ctx context.Context, lun int, conf iscsi.Config) (known bool, err error) {
	p.mu.Lock()
	s := p.all[names{conf.Initiator, conf.Target}]
	if s == nil {
		p.mu.Unlock()
		return true, p.env.Find(ctx, conf)
	}
	err = s.free(lun, 0)
	p.mu.Unlock()
	if err != nil {
		return true, err
	}
	select {
	case s.lock <- struct{}{}:
		defer s.give()
	default:
		return false, nil
	}
	if s.session == nil || s.closing {
		return false, nil
	}
	return true, agree(s.conf, conf)
}

// acquire returns the session for a logical unit; its user must release it.
func (p *pool) acquire(ctx context.Context, lun int, id int64, conf iscsi.Config) (*iscsi.Session, error) {
	s, err := p.enter(names{conf.Initiator, conf.Target}, lun, id)
	if err != nil {
		return nil, err
	}
	session, err := p.open(ctx, s, conf)
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		return nil, errors.Join(err, p.leave(undo, s, lun, true))
	}
	return session, nil
}

// open logs in unless somebody has.
func (p *pool) open(ctx context.Context, s *shared, conf iscsi.Config) (*iscsi.Session, error) {
	if err := s.take(ctx); err != nil {
		return nil, err
	}
	defer s.give()
	if err := p.recoverToEnd(s); err != nil {
		return nil, err
	}
	if err := p.endNameless(ctx); err != nil {
		return nil, err
	}
	if s.closing {
		if err := p.close(ctx, s, false); err != nil {
			return nil, err
		}
	}
	if s.session != nil {
		return s.session, agree(s.conf, conf)
	}
	ended := waits.Begin(ctx, "log in")
	session, err := iscsi.Open(ctx, p.env, conf)
	ended(errs.Is(err, errs.Deadline))
	if err != nil {
		return nil, err
	}
	s.conf = conf
	p.setSession(s, session)
	return session, nil
}

// agree makes sure that two attachments mean the same session.
func agree(has, wants iscsi.Config) error {
	var differ []string
	for _, field := range []struct {
		name string
		same bool
	}{
		{"host, port and portals", slices.Equal(has.Portals, wants.Portals)},
		{"auth", has.Auth == wants.Auth},
		{"header_digest", has.HeaderDigest == wants.HeaderDigest},
		{"data_digest", has.DataDigest == wants.DataDigest},
		{"max_comands", has.MaxCommands == wants.MaxCommands},
		{"replacement_timeout", has.Replacement == wants.Replacement},
	} {
		if !field.same {
			differ = append(differ, field.name)
		}
	}
	if len(differ) == 0 {
		return nil
	}
	return errs.New(errs.Conflict, "log in to %s as %s: another attachment has a session between these two with other values of: %s", wants.Target, wants.Initiator, strings.Join(differ, ", "))
}

// find returns what an attachment uses, or nil if it is no user (any more). The session is nil if another one has logged out
// already and could not end it.
func (p *pool) find(n names, lun int, id int64) (*shared, *iscsi.Session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.all[n]
	if s == nil || s.users[lun] != id {
		return nil, nil
	}
	return s, s.session
}

// state tells what a session does, if there is one. It does not wait.
func (p *pool) state(n names) (iscsi.State, bool) {
	s, ok := p.session(n)
	if !ok {
		return 0, false
	}
	return s.State(), true
}

// session returns a session, if there is one. It does not wait.
func (p *pool) session(n names) (*iscsi.Session, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.all[n]; s != nil && s.session != nil {
		return s.session, true
	}
	return nil, false
}

// leave lets a user go whose device is gone. The last one logs out. If that fails it stays a user and can try again, unless it
// is given up: then whoever wants the session next ends it first.
func (p *pool) leave(ctx context.Context, s *shared, lun int, giveUp bool) error {
	if err := s.take(ctx); err != nil {
		return err
	}
	defer s.give()
	var err error
	if p.isLast(s) && s.session != nil {
		if err = p.close(ctx, s, giveUp); err != nil && !giveUp {
			return err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(s.users, lun)
	if len(s.users) == 0 && s.session == nil {
		delete(p.all, s.names)
	}
	return err
}

func (p *pool) isLast(s *shared) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(s.users) == 1
}

// close logs out; the lock is held. Devices that others have scanned in go first, unless somebody uses one.
func (p *pool) close(ctx context.Context, s *shared, force bool) error {
	for _, lun := range s.session.Units() {
		if err := s.session.Unit(lun).Detach(ctx, force); err != nil {
			return err
		}
	}
	s.closing = true
	ended := waits.Begin(ctx, "log out")
	err := s.session.Close(ctx)
	ended(errs.Is(err, errs.Deadline))
	if err != nil {
		return err
	}
	s.closing = false
	p.setSession(s, nil)
	return nil
}

func (p *pool) setSession(s *shared, session *iscsi.Session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.session = session
}

// take takes the lock.
func (s *shared) take(ctx context.Context) error {
	ended := waits.Begin(ctx, "another attachment's change of the session")
	select {
	case s.lock <- struct{}{}:
		ended(false)
		return nil
	case <-ctx.Done():
		ended(true)
		return errs.New(errs.Deadline, "log in to %s: another attachment is doing that and is not done: %w", s.target, context.Cause(ctx))
	}
}

func (s *shared) give() { <-s.lock }
