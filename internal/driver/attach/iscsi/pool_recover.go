package iscsi

import (
	"context"
	"errors"
	"slices"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/iscsi"
)

// recoverWith makes what an earlier daemon has left of a session, if anything, this daemon's by take; the lock is held.
func (p *pool) recoverWith(s *shared, take func(iscsi.Leftover) (*iscsi.Session, error)) error {
	if s.session != nil {
		return nil
	}
	all, err := p.env.Leftovers()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(l iscsi.Leftover) bool { return names{l.Initiator, l.Target} == s.names })
	if i < 0 {
		return nil
	}
	session, err := take(all[i])
	if err == nil {
		p.setSession(s, session)
	}
	return err
}

// recoverToEnd recovers a session only to end it; the lock is held.
func (p *pool) recoverToEnd(s *shared) error {
	return p.recoverWith(s, func(l iscsi.Leftover) (*iscsi.Session, error) { return p.finish(s, l) })
}

func (p *pool) finish(s *shared, l iscsi.Leftover) (*iscsi.Session, error) {
	session, err := l.Finish(p.env)
	s.closing = err == nil
	return session, err
}

// recover enters an attachment of an earlier daemon as a user of its session, which is recovered with the first of them. With an
// error there is no such session, or it has changed; the attachment is its user even so.
func (p *pool) recover(ctx context.Context, lun int, id int64, conf iscsi.Config) (*iscsi.Session, error) {
	s, err := p.enter(names{conf.Initiator, conf.Target}, lun, id)
	if err != nil {
		return nil, err
	}
	if err := s.take(ctx); err != nil {
		return nil, err
	}
	defer s.give()
	err = p.recoverWith(s, func(l iscsi.Leftover) (*iscsi.Session, error) {
		if l.Ending() {
			return p.finish(s, l)
		}
		s.conf = conf
		return l.Recover(ctx, p.env, conf)
	})
	switch {
	case err != nil:
		return nil, err
	case s.session == nil:
		return nil, errs.New(errs.Conflict, "the session with %s is gone: another program ended it; delete the attachment and create it again", conf.Target)
	case s.closing:
		return nil, errs.New(errs.Conflict, "the session with %s has no connection any more: another program was ending it; delete the attachment and create it again", conf.Target)
	}
	return s.session, nil
}

// sweep ends what is left of a session that nobody has recovered. Of one that others use it removes the logical unit alone.
func (p *pool) sweep(ctx context.Context, n names, lun int, id int64) error {
	if err := p.endNameless(ctx); err != nil {
		return err
	}
	s, err := p.enter(n, lun, id)
	if err != nil {
		return nil // another attachment has taken the unit over as it was
	}
	return errors.Join(p.sweepUnit(ctx, s, lun), p.leave(ctx, s, lun, true))
}

// sweepUnit removes a logical unit that may be on its way in. If nobody else uses the session it goes with that.
func (p *pool) sweepUnit(ctx context.Context, s *shared, lun int) error {
	if err := s.take(ctx); err != nil {
		return err
	}
	defer s.give()
	if err := p.recoverToEnd(s); err != nil || s.session == nil || p.isLast(s) {
		return err
	}
	if err := s.session.Settle(ctx); err != nil {
		return err
	}
	if err := s.session.AwaitScan(ctx); err != nil {
		return err
	}
	return s.session.Unit(lun).Detach(ctx, true)
}

// endNameless ends the sessions that an earlier daemon has left before they came to a connection: no attachment is known to
// have begun them. They are looked for once, before this daemon makes one.
func (p *pool) endNameless(ctx context.Context) error {
	p.nameless.Lock()
	defer p.nameless.Unlock()
	if p.looked {
		return nil
	}
	all, err := p.env.Leftovers()
	if err != nil {
		return err
	}
	for _, l := range all {
		if l.Target != "" {
			continue
		}
		session, err := l.Finish(p.env)
		if err == nil {
			err = session.Close(ctx)
		}
		if err != nil {
			return err
		}
	}
	p.looked = true
	return nil
}
