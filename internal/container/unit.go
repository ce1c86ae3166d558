package container

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/mounttable"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
	"github.com/kraken-hpc/imageapi/models"
)

var (
	_ driver.Driver        = (*Driver)(nil)
	_ driver.ContainerUnit = (*unit)(nil)
	_ driver.Verified      = (*unit)(nil)
)

// unit is a planned container.
type unit struct {
	Def     models.Container `json:"definition"`        // only its fields, with their defaults
	Running bool             `json:"running,omitempty"` // asked for at its creation

	driver *Driver
}

// notes is what Up leaves for Show.
type notes struct {
	Log string            `json:"log"`
	OS  *models.OsRelease `json:"os_release,omitempty"`
}

// Name implements driver.ContainerUnit.
func (u *unit) Name() string { return string(u.Def.Name) }

// Autostart implements driver.ContainerUnit.
func (u *unit) Autostart() bool { return u.Running }

// Restart implements driver.ContainerUnit.
func (u *unit) Restart() driver.Restart {
	return driver.Restart{
		OnFailure: u.Def.Restart == models.ContainerRestartOnDashFailure || u.Def.Restart == models.ContainerRestartAlways,
		OnSuccess: u.Def.Restart == models.ContainerRestartAlways,
		Max:       u.Def.MaxRestarts,
	}
}

// Verified implements driver.Verified: files of the node are not.
func (u *unit) Verified(below bool) bool { return below && len(u.Def.Binds) == 0 }

// Up makes the log file.
func (u *unit) Up(ctx context.Context, place driver.Placement) (driver.Status, error) {
	if err := u.supported(); err != nil {
		return driver.Status{}, err
	}
	if err := ctx.Err(); err != nil {
		return driver.Status{}, errs.New(errs.Deadline, "create container: %w", context.Cause(ctx))
	}
	if err := u.tryResources(place.ID); err != nil {
		return driver.Status{}, err
	}
	if err := u.driver.createLog(place.ID); err != nil {
		return driver.Status{}, err
	}
	data, err := json.Marshal(notes{Log: u.driver.logPath(place.ID), OS: u.driver.osRelease(ctx, place)})
	return driver.Status{Notes: data}, err
}

// Down removes the log file and the rest of the last run: the exit record, and the cgroup and the socket if the end of the run left them.
func (u *unit) Down(_ context.Context, place driver.Placement, _ driver.Status) error {
	if err := u.driver.parent.Remove(groupName(place.ID)); err != nil {
		return err
	}
	return errors.Join(u.driver.registry.Forget(groupName(place.ID)), u.driver.removeLog(place.ID))
}

// Show implements driver.Unit. What changes from run to run is not ours to show.
func (u *unit) Show(out driver.Object, status driver.Status, needs []driver.Object) {
	c := out.Container
	name := c.Name // one that replaces another has none for a while
	for _, f := range fields {
		f.copyTo(c, &u.Def)
	}
	c.Name = name
	if len(needs) > 0 {
		c.Mount = needs[0].Mount
	}
	var n notes
	if json.Unmarshal(status.Notes, &n) == nil { // there are none before Up
		c.Logfile = n.Log
		if n.OS != nil {
			c.Image = &models.ContainerImage{OsRelease: n.OS}
		}
	}
}

// Inspect implements driver.Unit. The supervisor reports the end of a run, and no other program changes a container.
func (*unit) Inspect(driver.Placement, driver.Status, *mounttable.Table) error { return nil }

// IsStill implements driver.Unit.
func (*unit) IsStill(driver.Status) bool { return true }

// Start implements driver.ContainerUnit.
func (u *unit) Start(ctx context.Context, place driver.Placement, _ driver.Status) (driver.Process, error) {
	if len(place.Needs) != 1 || place.Needs[0].Tree == nil {
		return nil, errs.New(errs.Internal, "start container %d: no root", place.ID)
	}
	config, err := u.whole(place.ID)
	if err != nil {
		return nil, err
	}
	given, err := u.driver.gather(ctx, u, &config)
	if err != nil {
		return nil, err
	}
	defer given.close()
	shares, err := findWritables(u.shared(place.Needs[0].Tree.Path))
	if err != nil {
		return nil, err
	}
	p, err := u.driver.start(ctx, place.ID, place.Needs[0].Tree, given, shares, u.Def.Resources, config)
	if err != nil {
		return nil, err
	}
	return p, nil
}

// whole returns the configuration of a start, without the parts that find adds.
func (u *unit) whole(id int64) (wire.Config, error) {
	config := u.config(id)
	if !config.Systemd {
		return config, nil
	}
	err := u.addSystemdEnv(&config, id)
	return config, err
}

// hostname returns the host name of a container: as much of its name as the kernel takes, or one made of its id.
func hostname(name string, id int64) string {
	const longest = 64 // sethostname(2)
	if name == "" {
		name = "imageapi-" + strconv.FormatInt(id, 10)
	}
	return name[:min(len(name), longest)]
}
