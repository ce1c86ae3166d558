package drivertest

import (
	"context"
	"encoding/json"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/mounttable"
)

// Nothing is a driver.Unit whose acts succeed and do nothing. Tests embed it in units of which they need only some methods.
type Nothing struct{}

// Up implements driver.Unit.
func (Nothing) Up(context.Context, driver.Placement) (s driver.Status, err error) { return s, nil }

// Check implements driver.Unit.
func (Nothing) Check(context.Context, driver.Placement) (p driver.Preview, err error) { return p, nil }

// Down implements driver.Unit.
func (Nothing) Down(context.Context, driver.Placement, driver.Status) error { return nil }

// Recover implements driver.Unit.
func (Nothing) Recover(context.Context, driver.Placement, driver.Status) error { return nil }

// Sweep implements driver.Unit.
func (Nothing) Sweep(context.Context, driver.Placement) error { return nil }

// Inspect implements driver.Unit.
func (Nothing) Inspect(driver.Placement, driver.Status, *mounttable.Table) error { return nil }

// Show implements driver.Unit.
func (Nothing) Show(driver.Object, driver.Status, []driver.Object) {}

// IsStill implements driver.Unit.
func (Nothing) IsStill(driver.Status) bool { return false }

// NoContainer is the same for the other methods of a driver.ContainerUnit.
type NoContainer struct{}

// Name implements driver.ContainerUnit.
func (NoContainer) Name() string { return "" }

// Autostart implements driver.ContainerUnit.
func (NoContainer) Autostart() bool { return false }

// Restart implements driver.ContainerUnit.
func (NoContainer) Restart() (r driver.Restart) { return r }

// Start implements driver.ContainerUnit.
func (NoContainer) Start(context.Context, driver.Placement, driver.Status) (driver.Process, error) {
	return nil, errs.New(errs.Unsupported, "a test has no containers")
}

// CheckStart implements driver.ContainerUnit.
func (NoContainer) CheckStart(context.Context, driver.Placement) (p driver.Preview, err error) {
	return p, nil
}

// RecoverRun implements driver.ContainerUnit.
func (NoContainer) RecoverRun(context.Context, driver.Placement, driver.Status) (f driver.Found, err error) {
	return f, nil
}

// OpenLog implements driver.ContainerUnit.
func (NoContainer) OpenLog(int64, driver.LogQuery) (driver.Log, error) {
	return nil, errs.New(errs.Unsupported, "a test has no logs")
}

// Changed implements driver.ContainerUnit.
func (NoContainer) Changed(driver.Change, *errs.Faults) driver.ContainerUnit { return nil }

// Apply implements driver.ContainerUnit.
func (NoContainer) Apply(int64, driver.Process, driver.ContainerUnit) error { return nil }

// NothingDriver is the rest of a driver of such units.
type NothingDriver struct{}

// Restore implements driver.Driver.
func (NothingDriver) Restore(json.RawMessage) (driver.Unit, error) { return Nothing{}, nil }

// Survey implements driver.Driver.
func (NothingDriver) Survey(context.Context) (s driver.Survey) { return s }
