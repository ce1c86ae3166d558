package daemon

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/kraken-hpc/imageapi/internal/driver/attach/web"
	"github.com/kraken-hpc/imageapi/internal/driver/builtin"
	"github.com/kraken-hpc/imageapi/internal/logkey"
)

// leftover is a file in the run directory of an object without a record, as after a journal was lost: a mountpoint, with what is mounted there, or
// the log or the socket of a container.
type leftover struct {
	id   int64
	path string
}

// leftovers finds them.
func leftovers(cfg Node, known func(id int64) bool) (found []leftover) {
	for _, dir := range []string{builtin.MountsDir(cfg.RunDir), logsDir(cfg.RunDir), web.KeepersDir(cfg.RunDir)} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // there is none
		}
		for _, entry := range entries {
			number, _, _ := strings.Cut(entry.Name(), ".")
			if id, err := strconv.ParseInt(number, 10, 64); err == nil && !known(id) {
				found = append(found, leftover{id, filepath.Join(dir, entry.Name())})
			}
		}
	}
	return found
}

func logsDir(runDir string) string { return filepath.Join(runDir, "logs") }

// reportStrays logs what the journal does not know, and returns the smallest id above all of it: what is made from now on has nothing to do with it.
func (n *node) reportStrays(cfg Node, known func(id int64) bool) (next int64) {
	const hint = "imageapi-server --clean-strays"
	strays, err := n.runner.Strays(known)
	if err != nil {
		n.log.Warn("cgroups not listed", logkey.Error, err)
	}
	for _, s := range strays {
		n.log.Warn("stray container found", logkey.Container, s.ID, logkey.CGroup, s.Group, logkey.PIDs, s.Processes(), logkey.RunDir, s.Owner, logkey.Remedy, hint)
		next = max(next, s.ID+1)
	}
	for _, l := range leftovers(cfg, known) {
		n.log.Warn("stray file found", logkey.Path, l.path)
		next = max(next, l.id+1)
	}
	return next
}
