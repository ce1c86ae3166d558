package state

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/logkey"
	"github.com/kraken-hpc/imageapi/internal/mounttable"
)

const (
	// recoveryLimit is how long a request waits for the recovery of the object that it changes.
	recoveryLimit = 20 * time.Second
	// recoverAtOnce is how many attachments and mounts are recovered at the same time. Containers only wait for their supervisors: all of
	// them do at the same time, so that however many supervisors do not answer, the wait is that for one.
	recoverAtOnce = 16
)

// recovery is what is known of the recovery of the objects that an earlier daemon has left. It never changes: only its channels are
// closed.
type recovery struct {
	objects map[int64]chan struct{} // closed when the object has been recovered
	trees   chan struct{}           // closed when all attachments and mounts have been
	all     chan struct{}           // closed when all objects have been, or the manager ends
}

// newRecovery returns the recovery of objects that are still to be recovered.
func newRecovery(ids iter.Seq[int64]) recovery {
	r := recovery{objects: make(map[int64]chan struct{}), trees: make(chan struct{}), all: make(chan struct{})}
	for id := range ids {
		r.objects[id] = make(chan struct{})
	}
	return r
}

// nothingToRecover is the recovery of a daemon without an earlier one.
func nothingToRecover() recovery {
	done := make(chan struct{})
	close(done)
	return recovery{trees: done, all: done}
}

// Recover has the drivers look at the objects that Load has entered, dependencies first:
//
//  1. each object that was up is looked at by its driver: one that has changed is broken and says why;
//  2. containers find their runs again, or how they ended;
//  3. creations that were cut off are rolled back, and deletions are completed, in the background.
//
// Requests are served meanwhile. It returns when all objects have been recovered, or when the manager ends: then the next daemon has
// to recover the rest.
func (m *Manager) Recover() {
	defer close(m.recovery.all)
	begun := time.Now()
	mounts, err := mounttable.Read() // once: each look at it would cost as much as there are mounts
	if err != nil {
		m.log.Error("mount table read failed, looking up each mount", logkey.Error, err)
	}
	var trees, containers sync.WaitGroup
	slots := make(chan struct{}, recoverAtOnce)
	for _, v := range m.Snapshot().inOrder() {
		if v.Class == driver.Container {
			containers.Go(func() { m.recover(v, mounts) })
			continue
		}
		slots <- struct{}{}
		trees.Go(func() {
			defer func() { <-slots }()
			m.recover(v, mounts)
		})
	}
	trees.Wait()
	close(m.recovery.trees)
	containers.Wait()
	if m.life.Err() != nil {
		return
	}
	m.note(m.all()...)
	m.resumeReplaces()
	m.log.Info("objects recovered", logkey.Objects, len(m.recovery.objects), logkey.Duration, time.Since(begun))
}

// recover recovers one object, after its dependencies.
func (m *Manager) recover(v *View, mounts *mounttable.Table) {
	for _, need := range v.Needs {
		if done, known := m.recovery.objects[need]; known && wait(m.life, done) != nil {
			return
		}
	}
	if m.life.Err() != nil {
		return
	}
	m.recoverUnit(m.life, v.ID, mounts)
	if m.life.Err() != nil {
		return
	}
	m.resume(v.ID)
	close(m.recovery.objects[v.ID])
}

// recovered waits until objects have been recovered. Others need no wait.
func (m *Manager) recovered(ctx context.Context, ids ...int64) error {
	ctx, cancel := context.WithTimeoutCause(ctx, recoveryLimit, errTooSlow)
	defer cancel()
	for _, id := range ids {
		done, known := m.recovery.objects[id]
		if !known || isClosed(done) {
			continue
		}
		if err := m.awaits(ctx, done); err != nil {
			return fmt.Errorf("object %d: %w", id, err)
		}
	}
	return nil
}

// treesRecovered waits until all attachments and mounts have been recovered. Until then they do not hold all devices, sessions and
// directories that are theirs.
func (m *Manager) treesRecovered(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, recoveryLimit, errTooSlow)
	defer cancel()
	return m.awaits(ctx, m.recovery.trees)
}

// awaits waits for a step of the recovery.
func (m *Manager) awaits(ctx context.Context, done <-chan struct{}) error {
	if isClosed(done) {
		return nil
	}
	select {
	case <-done:
		return nil
	case <-m.life.Done():
		return errs.New(errs.Conflict, "the daemon is shutting down")
	case <-ctx.Done():
	}
	err := context.Cause(ctx)
	if errors.Is(err, errTooSlow) {
		return errs.New(errs.Deadline, "the daemon has just started and has not recovered it within %s: retry", recoveryLimit)
	}
	return err
}

// RecoverAndWatch recovers all objects in the background and then watches them: see Recover and Watch.
func (m *Manager) RecoverAndWatch(w Watcher) {
	m.work.Go(func() {
		m.Recover()
		m.Watch(w)
	})
}
