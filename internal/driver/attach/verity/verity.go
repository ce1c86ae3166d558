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
	"github.com/kraken-hpc/imageapi/internal/proc/oneshot"
	"github.com/kraken-hpc/imageapi/internal/sys/block"
	"github.com/kraken-hpc/imageapi/internal/sys/dm"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/models"
)

var (
	_ driver.Driver           = (*Driver)(nil)
	_ driver.Covering         = (*unit)(nil)
	_ driver.Forcer           = (*unit)(nil)
	_ driver.FatallyCorrupted = (*unit)(nil)
	_ driver.Changing         = (*unit)(nil)
	_ driver.Verified         = (*unit)(nil)
)

// Options are what the driver depends on.
type Options struct {
	Failpoint failpoint.Hook
	Helper    *oneshot.Runner
	Log       *slog.Logger // default: none
}

// Driver is a driver of attachments that may have verity.
type Driver struct {
	driver.Coverable // the driver of the device below
	mapper           dm.Mapper
	helper           *oneshot.Runner
	nodes            block.Nodes
	log              *slog.Logger

	// mu protects what follows.
	mu sync.Mutex
	// corrupted has the devices, by their ids of the device mapper, of which a read failed the check.
	corrupted map[string]bool
	// stranded is what is below of objects that could not come up and could not be undone either, by their ids.
	stranded map[int64]driver.Status
}

// announcer is a driver whose images can announce that they have verity: driver.Device.Verity.
type announcer interface{ AnnouncesVerity() }

// nodesOwn is a driver of devices of the node, which stay when they are detached.
type nodesOwn interface{ KeepsDevices() }

// Over returns the driver below with verity.
func Over(below driver.Coverable, o Options) *Driver {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Driver{
		Coverable: below, mapper: dm.Mapper{Failpoint: o.Failpoint, Helper: o.Helper}, helper: o.Helper, nodes: block.Nodes{Failpoint: o.Failpoint}, log: o.Log,
		corrupted: map[string]bool{}, stranded: map[int64]driver.Status{},
	}
}

// Survey is that of the driver below, and names the device mapper if the kernel lacks it: without it there is no verity, and all else works.
func (d *Driver) Survey(ctx context.Context) (s driver.Survey) {
	s = d.Coverable.Survey(ctx)
	if err := d.mapper.Find(ctx); err != nil {
		s.Missing = append(s.Missing, "verity: "+err.Error())
	}
	return s
}

// Plan checks the definition's form. Whether the hash is that of the device shows in Up.
func (d *Driver) Plan(def driver.Object, faults *errs.Faults) (driver.Unit, []driver.Need) {
	if def.Attach == nil || def.Attach.Verity == nil {
		under, needs := d.Coverable.Plan(def, faults)
		if _, announces := d.Coverable.(announcer); under == nil || !announces {
			return under, needs
		}
		announced := params{Announced: true, OnCorruption: models.AttachVerityOnCorruptionError}
		return &unit{driver: d, Mark: rand.Text(), Verity: announced, Under: under}, needs
	}
	v := def.Attach.Verity
	readOnly := d.ReadOnly(*def.Attach, faults)
	under, needs := d.Coverable.Plan(driver.Object{Attach: &readOnly}, faults)
	u := &unit{driver: d, Mark: rand.Text(), Verity: params{HashOffset: v.HashOffset, HashDevice: v.HashDevice != nil, OnCorruption: models.AttachVerityOnCorruptionError}}
	if v.RootHash != nil {
		u.Verity.RootHash = strings.ToLower(*v.RootHash)
	}
	if v.OnCorruption != nil {
		u.Verity.OnCorruption = *v.OnCorruption
	}
	u.Verity.check(faults)
	if v.HashDevice != nil {
		needs = append(needs, driver.Need{Path: "verity.hash_device", Def: driver.Object{Attach: v.HashDevice}})
	}
	u.Under = under
	return u, needs
}

// params is the definition of verity with its defaults.
type params struct {
	RootHash     string `json:"root_hash"` // in lower case
	HashOffset   int64  `json:"hash_offset,omitempty"`
	HashDevice   bool   `json:"hash_device,omitempty"` // it is the last need; else the tree is on the device itself
	OnCorruption string `json:"on_corruption"`
	Announced    bool   `json:"announced,omitempty"` // the rest is in driver.Device.Verity, if the device below has it
}

func (p params) check(faults *errs.Faults) {
	hash, err := hex.DecodeString(p.RootHash)
	known := false
	for _, length := range digests {
		known = known || len(hash) == length
	}
	if err != nil || !known {
		faults.Add("verity.root_hash", "must be a root hash as veritysetup(8) prints it: 64, 96 or 128 hexadecimal digits")
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

// Restore implements driver.Driver.
func (d *Driver) Restore(data json.RawMessage) (driver.Unit, error) {
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
		return d.Coverable.Restore(data)
	}
	under, err := d.Coverable.Restore(parts.Under)
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
