package web

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/logkey"
	"github.com/kraken-hpc/imageapi/internal/sys/block"
	"github.com/kraken-hpc/imageapi/internal/sys/holders"
	"github.com/kraken-hpc/imageapi/internal/sys/nbd"
)

const (
	// requestTimeout is the kernel's for one request. A keeper that was killed takes its requests with it for that long; a web server
	// that is silent for longer costs a new socket.
	requestTimeout = 10 * time.Second
	// deadConnection is how long readers wait while no keeper serves the device, before they get I/O errors.
	deadConnection = 24 * time.Hour
	// freeTimeout is how long the kernel may take to free a disconnected device: replies that are being sent have requestTimeout.
	freeTimeout = 15 * time.Second

	sector = 512
)

// onDemand attaches the image to a network block device that a keeper serves.
func (u *unit) onDemand(ctx context.Context, place driver.Placement, t target) (driver.Status, error) {
	d := u.driver
	if err := d.nbd.Load(ctx); err != nil {
		return driver.Status{}, err
	}
	a, err := u.access(ctx, t)
	if err != nil {
		return driver.Status{}, err
	}
	if err := u.keepSecrets(place.ID); err != nil {
		return driver.Status{}, err
	}
	s := d.newService(u, place.ID, t)
	s.access = &a
	status, err := s.up(ctx)
	if err != nil {
		return driver.Status{}, errors.Join(err, s.undo())
	}
	d.log.Debug("image attached", logkey.Object, place.ID, logkey.URL, u.URLs[0], logkey.Device, status.Device.Path)
	status.Warnings = u.unchecked()
	s.begin()
	return status, nil
}

// unchecked warns of a definition that lets servers exchange bytes.
func (u *unit) unchecked() []string {
	if u.Digest != "" {
		return []string{`http.digest is not checked in mode "on_demand": use verity, or mode "whole"`}
	}
	return []string{"without verity, nothing checks the bytes of an image that is read on demand"}
}

// device describes the device that the kernel has made.
func (u *unit) device(index int) (*driver.Device, bool, error) {
	dir := fmt.Sprintf("/sys/block/nbd%d", index)
	text, err := os.ReadFile(dir + "/dev")
	if err != nil {
		return nil, false, err
	}
	var major, minor uint32
	if _, err := fmt.Sscanf(string(text), "%d:%d", &major, &minor); err != nil {
		return nil, false, fmt.Errorf("read %s/dev: %w", dir, err)
	}
	number := unix.Mkdev(major, minor)
	path, made, err := u.driver.nodes.Ensure(number)
	if err != nil {
		return nil, false, err
	}
	sequence, _ := block.Attribute(dir, "diskseq") // Linux 5.15
	return &driver.Device{Path: path, Number: number, Sequence: uint64(sequence), ReadOnly: true, Remote: true}, made, nil
}

// present reports whether the device is still ours.
func (u *unit) present(id int64, index int) (bool, error) {
	state, err := nbd.Look(index)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil && state.PID != 0 && state.Backend == u.tag(id), err
}

// detach ends device and keeper. While the image is waited for, or by force, readers do not keep it: they get I/O errors.
func (u *unit) detach(ctx context.Context, id int64, status driver.Status, n notes, force bool) error {
	d := u.driver
	s := d.service(id)
	is, err := u.present(id, n.Index)
	if err != nil {
		return err
	}
	if is {
		if !force && !s.waits() {
			if users := holders.OfDevice(status.Device.Number); len(users) > 0 {
				return errs.New(errs.Busy, "detach %s: in use: %s", status.Device.Path, holders.Text(users))
			}
		}
		s.end()
		if err := u.disconnect(ctx, id, n.Index); err != nil {
			s.begin()
			return err
		}
	}
	s.end()
	if err := endKeeper(ctx, &d.keepers.registry, u.keeperName(id)); err != nil {
		return err
	}
	if n.MadeNode {
		free := func() bool {
			state, err := nbd.Look(n.Index)
			return err == nil && state.PID != 0
		}
		if err := d.nodes.RemoveUnless(status.Device.Path, status.Device.Number, free); err != nil {
			return err
		}
	}
	d.drop(id)
	return errors.Join(d.kept.Forget(id), d.cache.Trim(ctx))
}

// disconnect ends a device and waits until the kernel has freed it.
func (u *unit) disconnect(ctx context.Context, id int64, index int) error {
	if err := u.driver.nbd.Disconnect(index); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, freeTimeout)
	defer cancel()
	if err := nbd.WaitFree(ctx, index, u.tag(id)); err != nil {
		return errs.New(errs.Busy, "detach /dev/nbd%d: its I/O fails now, and it is still in use: %w", index, err)
	}
	return nil
}

// recoverDevice recovers the device and looks for its keeper in the background.
func (u *unit) recoverDevice(place driver.Placement, status driver.Status, n notes) error {
	if err := u.inspectDevice(place.ID, status, n); err != nil {
		return err
	}
	s := u.driver.newService(u, place.ID, u.target(n.Image))
	s.index, s.identity = n.Index, n.Identity
	s.begin()
	return nil
}

// inspectDevice is Inspect for mode on_demand.
func (u *unit) inspectDevice(id int64, status driver.Status, n notes) error {
	is, err := u.present(id, n.Index)
	if err != nil {
		return err
	}
	if !is {
		return errs.New(errs.Conflict, "%s is no longer attached to the image of %s: a program disconnected it; delete the attachment and create it again", status.Device.Path, n.URL)
	}
	if how := u.driver.service(id).state().Changed; how != "" {
		return errs.New(errs.Conflict, "%s: all reads fail; delete the attachment and create it again", how)
	}
	return nil
}

// sweepDevice ends what an interrupted Up has left.
func (u *unit) sweepDevice(ctx context.Context, id int64) error {
	index, found, err := nbd.Find(u.tag(id))
	if err == nil && found {
		err = u.disconnect(ctx, id, index)
	}
	u.driver.service(id).end()
	if err != nil {
		return err
	}
	u.driver.drop(id)
	return errors.Join(endKeeper(ctx, &u.driver.keepers.registry, u.keeperName(id)), u.driver.kept.Forget(id))
}

// showDevice shows the state of an image that is read on demand.
func (u *unit) showDevice(out driver.Object, n notes) {
	now := u.driver.service(n.ID).state()
	url := n.URL
	if now.URL != "" {
		url = now.URL
	}
	if now.Waiting != "" {
		out.Attach.WaitsFor = title(url) + ": " + now.Waiting
	}
	if h := out.Attach.HTTP; h != nil {
		h.URL, h.Size, h.Etag = url, n.Identity.Size, n.Identity.ETag
		h.Fetched, h.Requests = new(now.Fetched), new(now.Requests)
	}
}

// keepSecrets keeps the parts of the definition that the journal lacks for a later daemon.
func (u *unit) keepSecrets(id int64) error {
	if !u.Secrets {
		return nil
	}
	return u.driver.kept.Keep(id, u.secrets)
}

// findSecrets completes a definition of an earlier daemon.
func (u *unit) findSecrets(id int64) error {
	if !u.Secrets || u.secrets.URLs != nil || u.secrets.Auth != nil {
		return nil
	}
	if err := u.driver.kept.Find(id, &u.secrets); err != nil {
		return errs.New(errs.Conflict, "the secrets were not kept for this server: delete the attachment and create it again: %w", err)
	}
	return nil
}
