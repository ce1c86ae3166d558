// Package verity puts dm-verity above the devices that other attach drivers make: what is read there is checked against one hash.
//
// It is no kind of its own. It wraps a driver and is that driver, but for definitions that have the field "verity": of those the
// device of the wrapped driver is below, and the one that everybody sees above. A hash tree on another device is a need more.
package verity

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"strings"
	"sync"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/logkey"
	"github.com/kraken-hpc/imageapi/internal/sys/block"
	"github.com/kraken-hpc/imageapi/internal/sys/dm"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/sys/helper"
	"github.com/kraken-hpc/imageapi/models"
)

// Options are what the driver depends on.
type Options struct {
	Failpoint failpoint.Hook
	Helper    *helper.Runner
	Log       *slog.Logger // default: none
}

// Driver is a driver of attachments that may have verity.
type Driver struct {
	driver.Restorer // what is below
	mapper          dm.Mapper
	helper          *helper.Runner
	nodes           block.Nodes
	log             *slog.Logger

	// mu protects what follows.
	mu sync.Mutex
	// corrupted has the devices, by their ids of the device mapper, of which a read failed the check.
	corrupted map[string]bool
	// stranded is what is below of objects that could not come up and could not be undone either, by their ids.
	stranded map[int64]driver.Status
}

// Over returns the driver below with verity.
func Over(below driver.Restorer, o Options) *Driver {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Driver{
		Restorer: below, mapper: dm.Mapper{Failpoint: o.Failpoint, Helper: o.Helper}, helper: o.Helper, nodes: block.Nodes{Failpoint: o.Failpoint}, log: o.Log,
		corrupted: map[string]bool{}, stranded: map[int64]driver.Status{},
	}
}

// Survey is that of the driver below, and names the device mapper if the kernel lacks it: without it there is no verity, and all else works.
func (d *Driver) Survey(ctx context.Context) (s driver.Survey) {
	if below, ok := d.Restorer.(driver.Surveyor); ok {
		s = below.Survey(ctx)
	}
	if err := d.mapper.Find(ctx); err != nil {
		s.Missing = append(s.Missing, "verity: "+err.Error())
	}
	return s
}

// Plan checks the definition's form. Whether the hash is that of the device shows in Up.
func (d *Driver) Plan(def driver.Object, faults *errs.Faults) (driver.Unit, []driver.Need) {
	if def.Attach == nil || def.Attach.Verity == nil {
		return d.Restorer.Plan(def, faults)
	}
	var own errs.Faults
	v := def.Attach.Verity
	under, needs := d.Restorer.Plan(driver.Object{Attach: readOnly(def.Attach, &own)}, &own)
	u := &unit{driver: d, Mark: rand.Text(), Verity: params{HashOffset: v.HashOffset, HashDevice: v.HashDevice != nil, OnCorruption: models.AttachVerityOnCorruptionError}}
	if v.RootHash != nil {
		u.Verity.RootHash = strings.ToLower(*v.RootHash)
	}
	if v.OnCorruption != nil {
		u.Verity.OnCorruption = *v.OnCorruption
	}
	u.Verity.check(&own)
	if v.HashDevice != nil {
		needs = append(needs, driver.Need{Path: "verity.hash_device", Def: driver.Object{Attach: v.HashDevice}})
	}
	if len(own) > 0 {
		*faults = append(*faults, own...)
		return nil, needs
	}
	u.Under = under.(driver.Recoverable) // a Restorer has no others
	return u, needs
}

// readOnly returns def with what is below read-only, where its kind can be asked for that.
func readOnly(def *models.Attach, faults *errs.Faults) *models.Attach {
	a := *def
	if a.Loopback != nil {
		l := *a.Loopback
		if l.ReadPartitions != nil && *l.ReadPartitions {
			faults.Add("loopback.readPartitions", "makes no sense with verity, which is above the whole device: leave one of them out")
		}
		l.Ro, a.Loopback = new(true), &l
	}
	if a.Iscsi != nil {
		i := *a.Iscsi
		i.Ro, a.Iscsi = new(true), &i
	}
	if a.Rbd != nil && a.Rbd.Options != nil {
		r, o := *a.Rbd, *a.Rbd.Options
		if o.Rw {
			faults.Add("rbd.options.rw", "makes no sense with verity, above which nothing can be written: leave one of them out")
		}
		o.Ro, o.Rw = true, false
		r.Options, a.Rbd = &o, &r
	}
	return &a
}

// params is the definition of verity with its defaults.
type params struct {
	RootHash     string `json:"root_hash"` // in lower case
	HashOffset   int64  `json:"hash_offset,omitempty"`
	HashDevice   bool   `json:"hash_device,omitempty"` // it is the last need; else the tree is on the device itself
	OnCorruption string `json:"on_corruption"`
}

func (p params) check(faults *errs.Faults) {
	hash, err := hex.DecodeString(p.RootHash)
	known := false
	for _, length := range digests {
		known = known || len(hash) == length
	}
	if err != nil || !known {
		faults.Add("verity.root_hash", "must be what veritysetup(8) prints: 64, 96 or 128 hexadecimal digits")
	}
	switch {
	case p.HashOffset < 0 || p.HashOffset%superblockSize != 0:
		faults.Add("verity.hash_offset", "must be a multiple of %d", superblockSize)
	case p.HashOffset == 0 && !p.HashDevice:
		faults.Add("verity.hash_offset", "is required without a hash_device: say where on the device, behind the data, the hash tree is")
	}
	if p.OnCorruption != models.AttachVerityOnCorruptionError && p.OnCorruption != models.AttachVerityOnCorruptionStop {
		faults.Add("verity.on_corruption", "must be %q or %q", models.AttachVerityOnCorruptionError, models.AttachVerityOnCorruptionStop)
	}
}

// Restore implements driver.Restorer.
func (d *Driver) Restore(data json.RawMessage) (driver.Recoverable, error) {
	u := &unit{driver: d}
	parts := struct {
		Mark   *string         `json:"mark"`
		Verity *params         `json:"verity"`
		Under  json.RawMessage `json:"under"`
	}{Mark: &u.Mark}
	if err := json.Unmarshal(data, &parts); err != nil {
		return nil, err
	}
	if parts.Verity == nil {
		return d.Restorer.Restore(data)
	}
	under, err := d.Restorer.Restore(parts.Under)
	u.Verity, u.Under = *parts.Verity, under
	return u, err
}

// note notes whether a device is corrupted, and tells the log of it once.
func (d *Driver) note(name, device, data string) {
	d.mu.Lock()
	known := d.corrupted[name]
	d.corrupted[name] = true
	d.mu.Unlock()
	if !known {
		d.log.Error("dm-verity found corrupted data", logkey.Device, device, logkey.DataDevice, data)
	}
}

func (d *Driver) isCorrupted(name string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.corrupted[name]
}

func (d *Driver) forget(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.corrupted, name)
}

func (d *Driver) strand(id int64, under driver.Status) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stranded[id] = under
}

// rescue returns what was stranded of an object, until the returned function is called.
func (d *Driver) rescue(id int64) (under driver.Status, is bool, done func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	under, is = d.stranded[id]
	return under, is, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.stranded, id)
	}
}

var (
	_ driver.Restorer         = (*Driver)(nil)
	_ driver.Recoverable      = (*unit)(nil)
	_ driver.Forcer           = (*unit)(nil)
	_ driver.Inspector        = (*unit)(nil)
	_ driver.FatallyCorrupted = (*unit)(nil)
	_ driver.Changing         = (*unit)(nil)
	_ driver.Verified         = (*unit)(nil)
)
