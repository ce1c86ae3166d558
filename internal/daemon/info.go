package daemon

import (
	"context"
	"runtime"
	"sync"
	"time"

	"github.com/go-openapi/strfmt"
	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/models"
)

// surveyLifetime is how long a survey of the kernel is reused. Each one starts a few programs that look for modules.
const surveyLifetime = 10 * time.Second

// infoSource describes the server and the node.
type infoSource struct {
	cfg     Config
	version string
	started time.Time
	drivers driver.Set

	mu    sync.Mutex // protects what follows
	at    time.Time  // of the last survey
	found []*models.InfoDriver
}

func newInfoSource(cfg Config, version string, drivers driver.Set) *infoSource {
	return &infoSource{cfg: cfg, version: version, started: time.Now(), drivers: drivers}
}

// info returns a description as of now.
func (i *infoSource) info(ctx context.Context) *models.Info {
	started := strfmt.DateTime(i.started)
	info := &models.Info{
		Version: i.version, Architecture: runtime.GOARCH, StartedAt: &started, Drivers: i.survey(ctx), Limits: limitsOf(i.cfg),
		Space: spaceIn(i.cfg.Node.RunDir),
	}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		info.Kernel = unix.ByteSliceToString(name.Release[:])
	}
	return info
}

// survey asks each driver what the kernel lacks. A request that ends meanwhile does not spoil it for the next one.
func (i *infoSource) survey(ctx context.Context) []*models.InfoDriver {
	i.mu.Lock()
	defer i.mu.Unlock()
	if time.Since(i.at) < surveyLifetime {
		return i.found
	}
	found := make([]*models.InfoDriver, len(i.drivers))
	for n, d := range i.drivers {
		found[n] = &models.InfoDriver{Class: string(d.Class()), Kind: d.Kind()}
		survey := d.Survey(ctx)
		found[n].Missing, found[n].Available = survey.Missing, !survey.Unusable
	}
	if ctx.Err() == nil {
		i.at, i.found = time.Now(), found
	}
	return found
}

func limitsOf(cfg Config) *models.InfoLimits {
	return &models.InfoLimits{
		Objects: int64(cfg.Limits.Objects), Body: int64(cfg.Limits.MaxBody), Nesting: int64(cfg.Limits.Nesting), ClientRequests: int64(cfg.Limits.Requests),
		CreateTimeout: seconds(cfg.Node.CreateTimeout), DeleteTimeout: seconds(cfg.Node.DeleteTimeout), StopTimeout: seconds(cfg.Node.StopTimeout),
		LogSize: int64(cfg.Node.LogSize),
	}
}

func seconds(d time.Duration) int64 { return int64(d.Round(time.Second) / time.Second) }

// spaceIn returns how much the file system of each directory holds.
func spaceIn(dirs ...string) (all []*models.InfoSpace) {
	for _, dir := range dirs {
		if free, size := spaceOf(dir); size > 0 {
			all = append(all, &models.InfoSpace{Path: dir, Size: size, Free: free})
		}
	}
	return all
}

// spaceOf returns how much the file system of a directory holds, or zeros.
func spaceOf(dir string) (free, size int64) {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return 0, 0
	}
	return int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize
}
