package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/logkey"
	"github.com/kraken-hpc/imageapi/internal/proc/keeper"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
	"github.com/kraken-hpc/imageapi/internal/sys/nbd"
	"github.com/kraken-hpc/imageapi/internal/waits"
	"github.com/kraken-hpc/imageapi/internal/web/access"
	"github.com/kraken-hpc/imageapi/internal/web/keep"
	"github.com/kraken-hpc/imageapi/internal/web/source"
	"github.com/kraken-hpc/imageapi/models"
)

const (
	// windowMemory is the memory of a keeper for parts of the image, unless the read-ahead needs more.
	windowMemory = 16 << 20
	// usualReadAhead is how far a stream of reads is read ahead.
	usualReadAhead = 4 << 20
	// firstUser is the user of keepers: each attachment has its own of mostUsers. Nothing assigns such high numbers.
	firstUser, mostUsers = 4294836224, 65536

	retryLeast, retryMost = 100 * time.Millisecond, 5 * time.Second
	// findTimeout is how long a keeper may take to introduce itself.
	findTimeout = 5 * time.Second
)

// errStopped ends the watch of a keeper.
var errStopped = errors.New("the attachment is being detached")

// service is a device that is read on demand, as this daemon knows it. A nil service is one that it does not know.
type service struct {
	unit     *unit
	id       int64
	index    int             // N of /dev/nbdN; -1: there is none yet
	identity source.Identity // of the image
	target   target
	access   *access.Access // nil until it was read: an earlier daemon had it

	// For the goroutine of watch.
	keeper *keeper.Keeper
	socket int64 // the number of the last socket that the keeper got; -1: not known
	lost   bool  // the device needs another one

	cancel context.CancelCauseFunc
	done   chan struct{}

	mu     sync.Mutex // protects what follows
	status keep.Status
	before keep.Status // the counters of keepers that ended
	fault  string      // why no keeper serves the device, or empty
}

func (d *Driver) newService(u *unit, id int64, t target) *service {
	s := &service{unit: u, id: id, target: t, index: -1, socket: -1}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.services[id] = s
	return s
}

func (d *Driver) service(id int64) *service {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.services[id]
}

func (d *Driver) drop(id int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.services, id)
}

// state is what a response shows.
func (s *service) state() keep.Status {
	if s == nil {
		return keep.Status{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.status
	now.Requests += s.before.Requests
	now.Fetched += s.before.Fetched
	if s.fault != "" {
		now.Waiting = s.fault
	}
	return now
}

// waits reports whether reads cannot complete now.
func (s *service) waits() bool { return s == nil || s.state().Waiting != "" }

// set notes a status, and has the manager told if it is another one for clients.
func (s *service) set(status keep.Status, fault string) {
	s.mu.Lock()
	same := s.status.URL == status.URL && s.status.Waiting == status.Waiting && s.status.Changed == status.Changed && s.fault == fault
	s.status, s.fault = status, fault
	s.mu.Unlock()
	if !same && s.unit.driver.changed != nil {
		s.unit.driver.changed()
	}
}

// config is that of the next keeper.
func (s *service) config(resume bool) keep.Config {
	u := s.unit
	c := keep.Config{
		Access: *s.access, Resume: resume, Expect: s.identity, User: userOf(s.id), Memory: windowMemory, ReadAhead: u.ReadAhead,
	}
	if !resume {
		c.Expect = source.Identity{Size: s.target.size, ETag: u.ETag}
	}
	if c.ReadAhead == 0 {
		c.ReadAhead = usualReadAhead
	}
	c.Memory = max(c.Memory, 2*c.ReadAhead)
	return c
}

// userOf is the user of the process of an attachment.
func userOf(id int64) int { return firstUser + int(id%mostUsers) }

func (s *service) name() string { return s.unit.keeperName(s.id) }

// options are those of the device.
func (s *service) options() nbd.Options {
	return nbd.Options{
		Size: (s.identity.Size + sector - 1) / sector * sector, BlockSize: sector,
		Timeout: requestTimeout, DeadConnection: deadConnection, Backend: s.unit.tag(s.id),
	}
}

// up starts a keeper and connects a device to it.
func (s *service) up(ctx context.Context) (driver.Status, error) {
	if err := s.start(ctx, false); err != nil {
		return driver.Status{}, err
	}
	if s.identity.Size < sector {
		return driver.Status{}, errs.New(errs.Invalid, "the image at %s has %d bytes; a device has at least %d", s.unit.URLs[0], s.identity.Size, sector)
	}
	kernel, peer, err := nbd.Pair()
	if err != nil {
		return driver.Status{}, err
	}
	defer kernel.Close()
	defer peer.Close()
	if s.index, err = s.unit.driver.nbd.Connect(kernel, s.options()); err != nil {
		return driver.Status{}, err
	}
	if err := s.hand(peer); err != nil {
		return driver.Status{}, err
	}
	device, made, err := s.unit.device(s.index)
	if err != nil {
		return driver.Status{}, err
	}
	data, err := json.Marshal(notes{ID: s.id, Mode: models.AttachHTTPModeOnDemand, Index: s.index, MadeNode: made, Identity: s.identity, URL: s.target.shown[s.identity.URL], Image: s.target.image})
	return driver.Status{Device: device, Notes: data}, err
}

// hand gives the keeper a socket.
func (s *service) hand(peer *os.File) error {
	s.socket++
	return s.keeper.Send(wire.Message{Kind: keep.Socket, Fields: []string{strconv.FormatInt(s.socket, 10)}, Files: []int{int(peer.Fd())}})
}

// undo ends everything of an up that failed.
func (s *service) undo() error {
	ctx, cancel := context.WithTimeout(context.Background(), freeTimeout)
	defer cancel()
	d := s.unit.driver
	var err error
	if s.index >= 0 {
		err = s.unit.disconnect(ctx, s.id, s.index)
	}
	if s.keeper != nil {
		err = errors.Join(err, s.keeper.Kill(ctx))
		s.keeper.Close()
	}
	err = errors.Join(err, d.keepers.registry.Forget(s.name()), d.kept.Forget(s.id))
	d.drop(s.id)
	if err != nil {
		return &driver.Leftovers{Err: err}
	}
	return nil
}

// start starts a keeper and waits until it is ready.
func (s *service) start(ctx context.Context, resume bool) error {
	d := s.unit.driver
	if s.access == nil {
		if err := s.unit.findSecrets(s.id); err != nil {
			return err
		}
		a, err := s.unit.access(ctx, s.target)
		if err != nil {
			return err
		}
		s.access = &a
	}
	text, err := keep.Encode(s.config(resume))
	if err != nil {
		return err
	}
	k, err := d.keepers.serve(s.name(), text)
	if err != nil {
		return err
	}
	s.keeper, s.socket = k, 0
	ended := waits.Begin(waits.On(ctx, title(s.unit.URLs[0])), "identify the image")
	err = s.ready(ctx)
	ended(errs.Is(err, errs.Deadline))
	return err
}

// ready receives the first messages of a keeper.
func (s *service) ready(ctx context.Context) error {
	for {
		m, err := s.keeper.Receive(ctx)
		switch {
		case ctx.Err() != nil:
			return errs.New(errs.Deadline, "identify the image of %s: no response in time: %w", s.unit.URLs[0], context.Cause(ctx))
		case err != nil:
			return fmt.Errorf("start a keeper: the process ended at once: %w", err)
		case m.Kind == wire.Ready:
			var r keep.Ready
			if err := keep.Decode(m, &r); err != nil {
				return fmt.Errorf("start a keeper: %w", err)
			}
			s.identity = r.Identity
			for _, text := range r.Missing {
				s.unit.driver.log.Warn("keeper not protected", logkey.Object, s.id, logkey.Reason, text)
			}
			return nil
		case m.Kind == wire.Failed:
			return failure(m)
		}
		m.Close()
	}
}

// errNoRanges is the error of a server that sends whole objects only.
var errNoRanges = errors.New("the server does not support range requests")

func failure(m wire.Message) error {
	var f keep.Failure
	if err := keep.Decode(m, &f); err != nil {
		return fmt.Errorf("start a keeper: %w", err)
	}
	switch {
	case f.NoRanges:
		return errs.New(errs.Remote, "read the image on demand: %s: %w; use mode \"whole\"", f.Text, errNoRanges)
	case f.Own:
		return fmt.Errorf("start a keeper: %s", f.Text)
	}
	return errs.New(errs.Remote, "read the image on demand: %s", f.Text)
}

// begin watches the keeper from now on.
func (s *service) begin() {
	if s == nil {
		return
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	s.cancel, s.done = cancel, make(chan struct{})
	go func() {
		defer close(s.done)
		s.watch(ctx)
	}()
}

// end ends the watch, not the keeper.
func (s *service) end() {
	if s == nil || s.cancel == nil {
		return
	}
	s.cancel(errStopped)
	<-s.done
}

// watch replaces the keeper when it ends, and gives it a new socket when the kernel closed the last.
func (s *service) watch(ctx context.Context) {
	defer func() {
		if s.keeper != nil {
			s.keeper.Close()
		}
		s.keeper, s.socket, s.lost = nil, -1, false // another watch finds the keeper again
	}()
	for failures := 0; ctx.Err() == nil; {
		var err error
		switch {
		case s.keeper == nil:
			err = s.obtain(ctx)
		case s.lost:
			err = s.reconnect(ctx)
		default:
			s.follow(ctx)
		}
		if err == nil {
			failures = 0
			continue
		}
		if ctx.Err() != nil {
			return
		}
		s.set(s.last(), err.Error())
		s.unit.driver.log.Warn("image is not served", logkey.Object, s.id, logkey.Error, err)
		sleep(ctx, min(retryMost, retryLeast<<min(failures, 10)))
		failures++
	}
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

func (s *service) last() keep.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

// obtain finds the keeper of an earlier daemon, or starts another one.
func (s *service) obtain(ctx context.Context) error {
	if s.socket < 0 {
		finding, cancel := context.WithTimeout(ctx, findTimeout)
		k, err := s.unit.driver.keepers.registry.Find(finding, s.name())
		cancel()
		if err == nil {
			s.keeper = k
			return nil
		}
		if !errors.Is(err, keeper.ErrNone) {
			return err
		}
	}
	starting, cancel := context.WithTimeout(ctx, findTimeout)
	defer cancel()
	if err := s.start(starting, true); err != nil {
		s.lose()
		return err
	}
	s.lost = true
	s.unit.driver.log.Warn("keeper replaced", logkey.Object, s.id)
	return nil
}

// lose forgets a keeper that ended, or is of no use.
func (s *service) lose() {
	if s.keeper == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), findTimeout)
	defer cancel()
	_ = s.keeper.Kill(ctx)
	s.keeper.Close()
	s.keeper, s.socket = nil, 0
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before.Requests += s.status.Requests
	s.before.Fetched += s.status.Fetched
	s.status.Requests, s.status.Fetched = 0, 0
}

// follow takes the next message of the keeper.
func (s *service) follow(ctx context.Context) {
	m, err := s.keeper.Receive(ctx)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		s.unit.driver.log.Warn("keeper ended", logkey.Object, s.id, logkey.Error, err)
		s.lose()
	case m.Kind == wire.Status:
		s.take(m)
	}
	m.Close()
}

func (s *service) take(m wire.Message) {
	var status keep.Status
	if keep.Decode(m, &status) != nil {
		return
	}
	if s.socket < 0 {
		s.socket = status.Socket
	}
	s.lost = !status.Open && status.Socket == s.socket
	s.set(status, "")
}

// reconnect gives device and keeper a new pair of sockets. The kernel drops it while it takes the old one for alive.
func (s *service) reconnect(ctx context.Context) error {
	kernel, peer, err := nbd.Pair()
	if err != nil {
		return err
	}
	defer peer.Close()
	err = s.unit.driver.nbd.Reconfigure(s.index, kernel, s.options())
	kernel.Close()
	if err != nil {
		return err
	}
	if nbd.Dropped(peer) {
		again, cancel := context.WithTimeout(ctx, retryLeast)
		defer cancel()
		s.follow(again)
		return nil
	}
	if err := s.hand(peer); err != nil {
		s.lose()
		return err
	}
	s.lost = false
	return nil
}
