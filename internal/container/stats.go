package container

import (
	"os"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
	"github.com/kraken-hpc/imageapi/internal/sys/cgroup"
)

// How much is looked at where there is no controller to count for us.
const (
	maxGroups  = 4096
	maxThreads = 1 << 17
)

// Stats implements driver.Process. The container may end meanwhile: then its values are absent.
func (p *process) Stats() (driver.Stats, error) {
	dir, err := p.dir()
	if err != nil {
		return driver.Stats{}, err
	}
	defer dir.Close()
	stats := driver.Stats{
		Memory:      present(dir.Number("memory.current")),
		MemoryLimit: present(dir.Number("memory.max")),
		Swap:        present(dir.Number("memory.swap.current")),
		CPU:         present(dir.Entry("cpu.stat", "usage_usec")),
		OOMKills:    present(dir.Entry("memory.events", "oom_kill")),
		PIDs:        present(dir.Number("pids.current")),
		Log:         present(p.driver.logBytes(p.id)),
	}
	if stats.PIDs == nil {
		stats.PIDs = present(dir.Threads(maxGroups, maxThreads))
	}
	return stats, nil
}

func present(n int64, ok bool) *int64 {
	if !ok {
		return nil
	}
	return &n
}

// logBytes is how much of a log is kept.
func (d *Driver) logBytes(id int64) (sum int64, ok bool) {
	for _, suffix := range []string{"", wire.LogOlder} {
		if info, err := os.Lstat(d.logPath(id) + suffix); err == nil {
			sum, ok = sum+info.Size(), true
		}
	}
	return sum, ok
}

// oomKilled reports whether the kernel killed a process of the group, or below it, for lack of memory; nil where it does not count that.
func oomKilled(g *cgroup.Group) *bool {
	kills, ok := g.Entry("memory.events", "oom_kill")
	if !ok {
		return nil
	}
	return new(kills > 0)
}
