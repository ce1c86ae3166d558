package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver/attach/web"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/logkey"
	"github.com/kraken-hpc/imageapi/internal/mounttable"
	"github.com/kraken-hpc/imageapi/internal/sys/loop"
)

// CleanStrays kills and removes what an earlier server has left and the journal does not know. Objects in the journal are not touched, and no server
// may run on the run directory meanwhile. It is an error if something is left.
func CleanStrays(ctx context.Context, cfg Config, opt Options) (err error) {
	dir, err := claimInTime(ctx, cfg.Node.RunDir)
	if err != nil {
		return err
	}
	defer dir.release()
	cfg.Node.RunDir = dir.path
	n, found, err := openStore(ctx, cfg, dir, opt)
	defer func() { err = errors.Join(err, n.close(false)) }()
	if err != nil {
		return fmt.Errorf("start: %w", err)
	}
	if found.Why != "" {
		return fmt.Errorf("the journal was set aside just now (%s): everything in it is a stray now; look at %s, then repeat the command", found.Why, found.Aside)
	}
	known := knownTo(found.Records)
	return errors.Join(n.cleanContainers(ctx, known), n.cleanFiles(ctx, cfg.Node, opt, known))
}

// cleanContainers ends the containers.
func (n *node) cleanContainers(ctx context.Context, known func(id int64) bool) error {
	strays, err := n.runner.Strays(known)
	for _, s := range strays {
		if failed := n.runner.Clean(ctx, s); failed != nil {
			err = errors.Join(err, fmt.Errorf("clean %s with the processes %s: %w", s.Group, s.Processes(), failed))
			continue
		}
		n.log.Info("stray container removed", logkey.Container, s.ID, logkey.CGroup, s.Group, logkey.PIDs, s.Processes())
	}
	return err
}

// cleanFiles unmounts and removes the leftovers, the newest first: what stands on others goes before these.
func (n *node) cleanFiles(ctx context.Context, cfg Node, opt Options, known func(id int64) bool) (err error) {
	all := leftovers(cfg, known)
	slices.SortFunc(all, func(a, b leftover) int {
		return cmp.Or(cmp.Compare(b.id, a.id), cmp.Compare(len(a.path), len(b.path)))
	})
	for _, l := range all {
		device := deviceAt(l.path)
		if failed := n.cleanFile(ctx, l, opt); failed != nil {
			err = errors.Join(err, fmt.Errorf("clean %s: %w", l.path, failed))
			continue
		}
		n.log.Info("stray file removed", logkey.Path, l.path)
		if device != "" {
			err = errors.Join(err, n.cleanDevice(ctx, device, opt, known))
		}
	}
	return err
}

// deviceAt returns the device of the file system that is mounted at path, or an empty path.
func deviceAt(path string) string {
	table, err := mounttable.Read()
	if err != nil {
		return ""
	}
	for _, e := range table.At(path) {
		if strings.HasPrefix(e.Source, "/dev/") {
			return e.Source
		}
	}
	return ""
}

// cleanFile removes one, after the file system that is mounted there.
func (n *node) cleanFile(ctx context.Context, l leftover, opt Options) error {
	if filepath.Base(filepath.Dir(l.path)) == filepath.Base(web.KeepersDir("")) {
		return whileBusy(ctx, func() error { return web.CleanStray(ctx, opt.Failpoint, l.path) })
	}
	if info, err := os.Lstat(l.path); err != nil || !info.IsDir() {
		return opt.Failpoint.Do("stray remove", func() error { return os.Remove(l.path) })
	}
	mounts := n.mounts
	if _, word, aside := strings.Cut(filepath.Base(l.path), "."); aside {
		mounts = mounts.Aside(word)
	}
	return whileBusy(ctx, func() error { return mounts.Sweep(ctx, l.id) })
}

// whileBusy retries while something is busy: the mount namespace of a killed container ends a moment later.
func whileBusy(ctx context.Context, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		err := try()
		if !errs.Is(err, errs.Conflict) {
			return err
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return err
		}
	}
}

// cleanDevice detaches a loop device that a server has attached for an object which the journal does not know. Others stay, and are named.
func (n *node) cleanDevice(ctx context.Context, device string, opt Options, known func(id int64) bool) error {
	loops := loop.Loop{Failpoint: opt.Failpoint, Helper: n.helpers}
	mark, id, err := loops.MarkOf(ctx, device)
	if err != nil {
		return err
	}
	rest, ours := strings.CutPrefix(mark, "imageapi-")
	number, _, _ := strings.Cut(rest, "-")
	object, err := strconv.ParseInt(number, 10, 64)
	switch {
	case !ours || err != nil:
		n.log.Warn("stray device kept", logkey.Device, device)
		return nil
	case known(object):
		return nil
	}
	if err := loops.Detach(ctx, device, id); err != nil {
		return fmt.Errorf("detach %s: %w", device, err)
	}
	n.log.Info("stray device detached", logkey.Device, device)
	return nil
}
