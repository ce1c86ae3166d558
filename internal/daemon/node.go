package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/kraken-hpc/imageapi/internal/container"
	"github.com/kraken-hpc/imageapi/internal/container/initbin"
	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/attach/web"
	"github.com/kraken-hpc/imageapi/internal/driver/builtin"
	"github.com/kraken-hpc/imageapi/internal/logkey"
	"github.com/kraken-hpc/imageapi/internal/proc/oneshot"
	"github.com/kraken-hpc/imageapi/internal/state"
	"github.com/kraken-hpc/imageapi/internal/state/journal"
	"github.com/kraken-hpc/imageapi/internal/sys/cgroup"
	"github.com/kraken-hpc/imageapi/internal/sys/mountdir"
	"github.com/kraken-hpc/imageapi/internal/sys/watch"
)

// node is what the daemon has open on the node.
type node struct {
	log          *slog.Logger
	closeTimeout time.Duration
	journal      *journal.Journal
	recoverable  bool // the journal has objects of an earlier server
	mounts       *mountdir.Dir
	images       *web.Store
	program      *os.File // imageapi-init
	helpers      *oneshot.Runner
	runner       *container.Driver
	drivers      driver.Set
	watcher      *watch.Watcher // until the manager has it
	manager      *state.Manager
}

// openNode opens everything, or nothing, in this order: the journal, the directory of mountpoints, the program
// beside the daemon, the groups of the containers, the state. close goes the other way.
func openNode(ctx context.Context, cfg Config, dir *runDir, opt Options, observe func(state.Act)) (n *node, err error) {
	n, found, err := openStore(ctx, cfg, dir, opt)
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close(false))
		}
	}()
	if err != nil {
		return n, err
	}
	if n.watcher, err = watch.Open(); err != nil {
		return n, err
	}
	n.images = &web.Store{Failpoint: opt.Failpoint, Dir: cfg.Node.CacheDir, Size: int64(cfg.Node.CacheSize), Mounts: n.mounts}
	n.drivers = builtin.Drivers(builtin.Env{
		Failpoint: opt.Failpoint, Mounts: n.mounts, Containers: n.runner, Helper: n.helpers, Images: n.images,
		RunDir: cfg.Node.RunDir, FSTypes: cfg.Node.FSTypes, Changed: n.watcher.Wake, Log: opt.Log,
	})
	next := n.reportStrays(cfg.Node, knownTo(found.Records))
	n.manager = state.New(state.Options{
		Failpoint: opt.Failpoint, Journal: n.journal, Entries: found.Entries, NextID: max(found.NextID, next), Log: opt.Log, MaxObjects: cfg.Limits.Objects, Observe: observe,
		CreateTimeout: cfg.Node.CreateTimeout, DeleteTimeout: cfg.Node.DeleteTimeout, RequireVerity: cfg.Node.RequireVerity,
	})
	n.manager.Load(found.Records, n.drivers)
	// Requests are served meanwhile. From then on it notices what is changed behind its back.
	n.manager.RecoverAndWatch(n.watcher)
	n.watcher = nil
	return n, nil
}

// openStore opens what an earlier server has left things in: the part of openNode that starts nothing.
func openStore(ctx context.Context, cfg Config, dir *runDir, opt Options) (n *node, found journal.Found, err error) {
	n = &node{log: opt.Log, closeTimeout: container.LongestStop(cfg.Node.StopTimeout) + cfg.Node.DeleteTimeout}
	if found, err = n.openJournal(filepath.Join(cfg.Node.RunDir, "journal.db")); err != nil {
		return n, found, err
	}
	n.recoverable = len(found.Records) > 0
	if err := dir.keep(len(found.Records)); err != nil {
		return n, found, err
	}
	if n.mounts, err = mountdir.Open(builtin.MountsDir(cfg.Node.RunDir), opt.Failpoint); err != nil {
		return n, found, err
	}
	if n.program, err = initbin.Program(); err != nil {
		return n, found, err
	}
	n.helpers = oneshot.New(n.program, opt.Failpoint)
	err = whileOccupied(ctx, func() (err error) {
		n.runner, err = container.New(ctx, container.Options{
			Failpoint: opt.Failpoint, RunDir: cfg.Node.RunDir, CgroupParent: cfg.Node.CgroupParent, StopTimeout: cfg.Node.StopTimeout, Log: opt.Log,
			LogSize: int64(cfg.Node.LogSize), Capabilities: cfg.Node.Capabilities, Program: n.program, Helper: n.helpers, Groups: groupsOf(found.Records),
		})
		if errors.Is(err, cgroup.ErrTaken) {
			err = occupied(err.Error())
		}
		return err
	})
	return n, found, err
}

// knownTo returns a function that reports whether there is a record of an object.
func knownTo(records []journal.Record) func(id int64) bool {
	known := make(map[int64]bool, len(records))
	known[0] = len(records) > 0 // the cache in memory, which any of them may use
	for _, r := range records {
		known[r.ID] = true
	}
	return func(id int64) bool { return known[id] }
}

// groupsOf returns the directories of the cgroups of the containers that ran last.
func groupsOf(records []journal.Record) (dirs []string) {
	for _, r := range records {
		var run state.Run
		if json.Unmarshal(r.Run, &run) == nil && run.Cgroup != "" {
			dirs = append(dirs, run.Cgroup)
		}
	}
	return dirs
}

// openJournal opens the journal, and logs if its content is lost.
func (n *node) openJournal(path string) (journal.Found, error) {
	boot, err := journal.BootID()
	if err != nil {
		return journal.Found{}, err
	}
	j, found, err := journal.Open(path, boot, n.log)
	if err != nil {
		return found, err
	}
	n.journal = j
	if found.Why != "" {
		n.log.Error("journal set aside, earlier objects not recovered", logkey.Path, found.Aside, logkey.Reason, found.Why)
	}
	return found, nil
}

// close leaves to a later server what the clients have made, or takes it down, for as long as the stop timeout and the delete
// timeout together, and then what openNode has opened, but for what is still used.
func (n *node) close(teardown bool) error {
	var left []error
	if n.manager != nil {
		left = append(left, n.end(teardown))
	}
	if n.watcher != nil {
		left = append(left, n.watcher.Close())
	}
	if n.runner != nil {
		left = append(left, n.runner.Close())
	}
	if n.program != nil {
		left = append(left, n.program.Close())
	}
	if n.mounts != nil {
		left = append(left, n.closeMounts())
	}
	if n.journal != nil {
		left = append(left, n.journal.Close())
	}
	return errors.Join(left...)
}

// end ends the manager.
func (n *node) end(teardown bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), n.closeTimeout)
	defer cancel()
	if !teardown {
		n.log.Info("objects kept for the next server")
		if err := n.manager.Leave(ctx); err != nil {
			n.log.Warn("operations left unfinished for the next server", logkey.Error, err)
		}
		return nil
	}
	n.log.Info("deleting all objects", logkey.Timeout, n.closeTimeout)
	err := n.manager.Close(ctx)
	if err == nil {
		n.log.Info("all objects deleted")
	}
	return err
}

// closeMounts takes away the directory of mounts if no object is left.
func (n *node) closeMounts() error {
	remain := n.manager == nil && n.recoverable || n.manager != nil && !n.manager.Snapshot().Empty()
	var err error
	if n.images != nil {
		err = n.images.Close()
		if !remain {
			err = errors.Join(err, n.images.Trim(context.Background()))
		}
	}
	if remain {
		n.mounts.Leave()
		return err
	}
	return errors.Join(err, n.mounts.Close())
}
