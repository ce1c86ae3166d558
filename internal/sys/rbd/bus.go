// Package rbd maps images of a Ceph cluster to block devices and unmaps them: the kernel's client krbd, by its files in
// sysfs (Documentation/ABI/testing/sysfs-bus-rbd).
//
// Both can wait for the cluster, so a helper process does them. The user's secret goes to the kernel as a key that this
// process alone has; the kernel copies it, so that nothing of it is left when the process ends. The description of the
// key, which is different for each mapping, stays in sysfs, and tells later which device is whose.
package rbd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/oneshot"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/sys/holders"
	"github.com/kraken-hpc/imageapi/internal/sys/kmsg"
	"github.com/kraken-hpc/imageapi/internal/sys/module"
)

// Bus is the way to krbd. Its methods are safe for concurrent use.
type Bus struct {
	Failpoint failpoint.Hook
	Helper    *oneshot.Runner
}

// dir is the bus's place in sysfs.
const dir = "/sys/bus/rbd"

// Load loads the kernel's client if it is not there.
func (b *Bus) Load(ctx context.Context) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	return module.Load(ctx, b.Failpoint, moduleName)
}

// Find fails as Load would if the node does not have it. It loads nothing.
func (b *Bus) Find(ctx context.Context) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	return module.Find(ctx, b.Failpoint, moduleName)
}

const moduleName = "rbd"

// Secret is a user's key as the cluster made it, decoded from base64.
type Secret []byte

// Map maps an image. name is the description of the key: no other mapping of this boot may have it. If Map fails something of it may
// be there nevertheless, or come when the helper comes to its end: Sweep takes that away.
func (b *Bus) Map(ctx context.Context, s Spec, secret Secret, name string) (Device, error) {
	line, err := s.line(name)
	if err != nil {
		return Device{}, fmt.Errorf("map %s: %w", s, err)
	}
	log := kmsg.Listen(s.concerns)
	defer log.Close()
	key := oneshot.Key{Type: "ceph", Description: name, Payload: secret}
	if err := b.Helper.About(name).WriteFileWithKey(ctx, b.file("add"), []byte(line), key); err != nil {
		return Device{}, s.explain(err, log.Lines())
	}
	d, ok, err := b.byKey(name)
	if err == nil && !ok {
		err = fmt.Errorf("map %s: the kernel shows no device for it", s)
	}
	return d, err
}

// Sweep waits until nothing is under way any more that was begun with keys whose descriptions have a prefix, by this daemon or an
// earlier one, and unmaps what is mapped with them. That there is nothing is fine.
func (b *Bus) Sweep(ctx context.Context, prefix string) error {
	if err := b.Outlive(ctx, prefix); err != nil {
		return err
	}
	all, err := b.Devices()
	for _, d := range all {
		if strings.HasPrefix(d.Key, prefix) {
			err = errors.Join(err, b.Unmap(ctx, d.Identity, false))
		}
	}
	return err
}

// Outlive is the first step of Sweep.
func (b *Bus) Outlive(ctx context.Context, prefix string) error {
	return oneshot.Outlived(ctx, func(about string) bool { return strings.HasPrefix(about, prefix) })
}

// file returns the path of a control file of the bus. Which of the two kinds works depends on the module's parameter
// single_major; those with the long name always do where they exist.
func (b *Bus) file(name string) string {
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path + "_single_major"); err == nil {
		return path + "_single_major"
	}
	return path
}

// Unmap unmaps an image; if the device is not that mapping any more, it is unmapped already. A device that is in use is
// an errs.Conflict that names the users, and then nothing has changed. With force a device of a dead cluster or a deleted
// image that the kernel calls busy though nobody can be found who uses it is unmapped all the same: its open requests
// fail.
func (b *Bus) Unmap(ctx context.Context, d Identity, force bool) error {
	for {
		err := holders.WhenFree(ctx, func() error { return b.unmap(ctx, d, "") })
		switch {
		case force && errors.Is(err, errHidden) && b.dead(ctx, d):
			return b.unmap(ctx, d, " force")
		case !errors.Is(err, unix.EINPROGRESS):
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(retryInterval):
		}
	}
}

// retryInterval is the time between two looks at an earlier attempt.
const retryInterval = 50 * time.Millisecond

// Users of a device that are a mount or another device; or that nobody can name.
var (
	errLasting = errors.New("in use")
	errHidden  = fmt.Errorf("%w", holders.ErrPassing)
)

// unmap is one attempt.
func (b *Bus) unmap(ctx context.Context, d Identity, how string) error {
	if present, err := b.present(d); !present || err != nil {
		return err
	}
	if err := d.held(); err != nil {
		return err
	}
	err := b.Helper.About(d.Key).WriteFile(ctx, b.file("remove"), []byte(strconv.Itoa(d.ID)+how))
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EBUSY):
		if err := d.held(); err != nil {
			return err
		}
		return errs.New(errs.Conflict, "unmap /dev/%s: %w by something that is not seen from here: a mount that no process can see, or the kernel itself", d.Name(), errHidden)
	case errors.Is(err, unix.EINPROGRESS):
		return errs.New(errs.Deadline, "unmap /dev/%s: an earlier attempt still waits for the cluster: %w", d.Name(), err)
	}
	// A killed process may have come to the end of it.
	if present, lookErr := b.present(d); lookErr == nil && !present {
		return nil
	}
	return fmt.Errorf("unmap /dev/%s: %w", d.Name(), err)
}

// held is an error that names who holds the device, if anybody can be named.
func (d Identity) held() error {
	users := holders.OfDevice(d.Number)
	if len(users) == 0 {
		return nil
	}
	how := holders.ErrPassing
	if slices.ContainsFunc(users, func(h holders.Holder) bool { return h.PID == 0 }) {
		how = errLasting
	}
	return holders.InUse("unmap", "/dev/"+d.Name(), how, users)
}

// probing is how long a living cluster may take to answer.
const probing = 3 * time.Second

// dead reports whether the image behind a device can't be reached: the kernel fails to read its header again.
func (b *Bus) dead(ctx context.Context, d Identity) bool {
	ctx, cancel := context.WithTimeout(ctx, probing)
	defer cancel()
	refresh := filepath.Join(dir, "devices", strconv.Itoa(d.ID), "refresh")
	return b.Helper.About(d.Key).WriteFile(ctx, refresh, []byte("1")) != nil
}
