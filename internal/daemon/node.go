package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/kraken-hpc/imageapi/internal/container"
	"github.com/kraken-hpc/imageapi/internal/container/initbin"
	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/builtin"
	"github.com/kraken-hpc/imageapi/internal/state"
	"github.com/kraken-hpc/imageapi/internal/state/journal"
	"github.com/kraken-hpc/imageapi/internal/sys/helper"
	"github.com/kraken-hpc/imageapi/internal/sys/mountdir"
)

// node is what the daemon has open on the node.
type node struct {
	log      *slog.Logger
	teardown time.Duration // how long it may take
	journal  *journal.Journal
	mounts   *mountdir.Dir
	program  *os.File // imageapi-init
	runner   *container.Driver
	drivers  driver.Set
	manager  *state.Manager
}

// openNode opens everything, or nothing, in this order: the journal, the directory of mountpoints, the program
// beside the daemon, the groups of the containers, the state. close goes the other way.
func openNode(ctx context.Context, cfg Config, log *slog.Logger) (n *node, err error) {
	n = &node{log: log, teardown: max(cfg.Node.StopTimeout, container.MaxStopTimeout) + cfg.Node.DeleteTimeout}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
		}
	}()
	next, err := n.openJournal(filepath.Join(cfg.Node.RunDir, "journal.db"))
	if err != nil {
		return n, err
	}
	if n.mounts, err = mountdir.Open(builtin.MountsDir(cfg.Node.RunDir), nil); err != nil {
		return n, err
	}
	if n.program, err = initbin.Program(); err != nil {
		return n, err
	}
	helpers := helper.New(n.program, nil)
	n.runner, err = container.New(ctx, container.Options{
		RunDir: cfg.Node.RunDir, CgroupParent: cfg.Node.CgroupParent, StopTimeout: cfg.Node.StopTimeout, Log: log,
		LogSize: int64(cfg.Node.LogSize), Program: n.program, Helper: helpers,
	})
	if err != nil {
		return n, err
	}
	n.drivers = builtin.Drivers(builtin.Env{
		Mounts: n.mounts, Containers: n.runner, Helper: helpers,
		RunDir: cfg.Node.RunDir, FSTypes: cfg.Node.FSTypes, Log: log,
	})
	n.manager = state.New(state.Options{
		Journal: n.journal, NextID: next, Log: log,
		CreateTimeout: cfg.Node.CreateTimeout, DeleteTimeout: cfg.Node.DeleteTimeout,
	})
	return n, nil
}

// openJournal returns the smallest id that was never given out.
func (n *node) openJournal(path string) (next int64, err error) {
	boot, err := journal.BootID()
	if err != nil {
		return 0, err
	}
	j, found, err := journal.Open(path, boot)
	if err != nil {
		return 0, err
	}
	n.journal = j
	if found.Aside != "" {
		n.log.Warn("the journal was set aside and a new one begun", "file", found.Aside, "why", found.Why)
	}
	for _, r := range found.Records {
		n.log.Warn("an earlier daemon ended without taking this down; look whether it is still there", "object", fmt.Sprintf("%s %d", r.Class, r.ID), "kind", r.Kind, "name", r.Name)
	}
	return found.NextID, nil
}

// close takes down what the clients have made, for as long as the stop timeout and the delete timeout together, and
// then what openNode has opened. What others still use stays.
func (n *node) close() error {
	var left []error
	if n.manager != nil {
		n.log.Info("taking everything down", "within", n.teardown)
		ctx, cancel := context.WithTimeout(context.Background(), n.teardown)
		defer cancel()
		left = append(left, n.manager.Close(ctx))
	}
	if n.runner != nil {
		left = append(left, n.runner.Close())
	}
	if n.program != nil {
		left = append(left, n.program.Close())
	}
	if n.mounts != nil {
		left = append(left, n.mounts.Close())
	}
	if n.journal != nil {
		left = append(left, n.journal.Close())
	}
	err := errors.Join(left...)
	if n.manager != nil && err == nil {
		n.log.Info("everything is taken down")
	}
	return err
}
