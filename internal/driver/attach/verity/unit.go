package verity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/logkey"
	"github.com/kraken-hpc/imageapi/internal/mounttable"
	"github.com/kraken-hpc/imageapi/internal/sys/block"
	"github.com/kraken-hpc/imageapi/internal/sys/dm"
	"github.com/kraken-hpc/imageapi/internal/sys/holders"
	"github.com/kraken-hpc/imageapi/internal/waits"
	"github.com/kraken-hpc/imageapi/models"
)

// undoTime is how long it may take to take back what is half done.
const undoTime = 10 * time.Second

// unit is an attachment with verity.
type unit struct {
	driver *Driver
	Mark   string      `json:"mark"` // random: tells what is ours from what is another daemon's
	Verity params      `json:"verity"`
	Under  driver.Unit `json:"under"`
}

// notes is what there is beyond the device.
type notes struct {
	Name     string        `json:"name"`  // of the device, for the device mapper
	Table    string        `json:"table"` // as the kernel tells it
	MadeNode bool          `json:"made_node,omitempty"`
	Under    driver.Status `json:"under"`
}

// bare reports whether there is no device above.
func (n notes) bare() bool { return n.Name == "" }

// name is the id, for the device mapper, of the device of the object with an id.
func (u *unit) name(id int64) string { return "imageapi-" + strconv.FormatInt(id, 10) + "-" + u.Mark }

// below is where the device below is made.
func (u *unit) below(place driver.Placement) driver.Placement {
	if u.Verity.HashDevice {
		place.Needs = place.Needs[:len(place.Needs)-1]
	}
	return place
}

// Up makes the device below, and the one above it:
//
//  1. what is below comes up;
//  2. the superblock says what the tree is like; its sizes must be those of the devices;
//  3. the device mapper makes the device;
//  4. its first block is read: then the root hash is that of the tree, and the tree that of the first block.
func (u *unit) Up(ctx context.Context, place driver.Placement) (driver.Status, error) {
	under, err := u.Under.Up(ctx, u.below(place))
	if err != nil {
		return driver.Status{}, err
	}
	if why, bare := u.staysBare(ctx, under); bare {
		return uncovered(under, why)
	}
	status, err := u.cover(waits.On(ctx, "device "+under.Device.Path), place, under)
	if err != nil {
		return driver.Status{}, u.undo(place, status, under, err)
	}
	u.driver.log.Debug("dm-verity device created", logkey.Object, place.ID, logkey.DataDevice, under.Device.Path, logkey.Device, status.Device.Path)
	return status, nil
}

// params are those of the definition, or of the device below.
func (u *unit) params(under driver.Status) params {
	p := u.Verity
	if p.Announced && under.Device != nil && under.Device.Verity != nil {
		p.RootHash, p.HashOffset = under.Device.Verity.RootHash, under.Device.Verity.HashOffset
	}
	return p
}

// staysBare reports whether a device below stays without verity that its image could announce, and why if that needs a word.
func (u *unit) staysBare(ctx context.Context, under driver.Status) (why string, bare bool) {
	if !u.Verity.Announced {
		return "", false
	}
	if under.Device.Verity == nil {
		return "", true
	}
	if err := u.driver.mapper.Find(ctx); err != nil {
		return "oci: the image has a verity root hash, which this node does not check: " + err.Error(), true
	}
	return "", false
}

// uncovered is the status of a device below that stays without verity.
func uncovered(under driver.Status, warning string) (driver.Status, error) {
	text, err := json.Marshal(notes{Under: under})
	status := driver.Status{Device: under.Device, Notes: text, Warnings: under.Warnings}
	if warning != "" {
		status.Warnings = append(status.Warnings, warning)
	}
	return status, err
}

// Check implements driver.Unit. Of a hash tree something is known only if the devices are there already.
func (u *unit) Check(ctx context.Context, place driver.Placement) (driver.Preview, error) {
	if u.Verity.Announced {
		return u.Under.Check(ctx, place)
	}
	f, err := u.Under.Check(ctx, u.below(place))
	f.Does += ", and check all reads against a root hash"
	if err != nil {
		return f, err
	}
	data, hash := f.Status.Device, f.Status.Device
	if u.Verity.HashDevice {
		hash = place.Needs[len(place.Needs)-1].Device
	}
	f.Status.Device = &driver.Device{ReadOnly: true, Remote: data.Remote || hash.Remote}
	f.Unknown = append(f.Unknown, "whether the root hash matches the device")
	if data.Made() && hash.Made() {
		if _, err := u.superblock(ctx, u.Verity, data, hash); err != nil {
			return f, err
		}
	}
	return f, u.driver.mapper.Find(ctx)
}

// cover makes the device above; what it returns with an error is there and must go again.
func (u *unit) cover(ctx context.Context, place driver.Placement, under driver.Status) (driver.Status, error) {
	p := u.params(under)
	d, n := u.driver, notes{Name: u.name(place.ID), Under: under}
	data, hash := under.Device, under.Device
	if u.Verity.HashDevice {
		hash = place.Needs[len(place.Needs)-1].Device
	}
	s, err := u.superblock(ctx, p, data, hash)
	if err != nil {
		return driver.Status{}, err
	}
	err = d.mapper.Make(ctx, n.Name, dm.Target{
		Type: "verity", Size: s.size(), Params: s.table(numbers(data), numbers(hash), p.HashOffset, p.RootHash),
	})
	if err != nil {
		return driver.Status{}, err
	}
	status, err := d.mapper.Status(n.Name)
	if err != nil {
		return driver.Status{}, err
	}
	n.Table = status.Table
	info, err := block.Find(status.Number)
	if err != nil {
		return driver.Status{}, err
	}
	device := &driver.Device{Number: info.Number, Sequence: info.Sequence, ReadOnly: true, Remote: data.Remote || hash.Remote}
	if device.Path, n.MadeNode, err = d.nodes.Ensure(info.Number); err != nil {
		return driver.Status{}, err
	}
	text, err := json.Marshal(n)
	if err == nil {
		err = u.firstBlock(ctx, device.Path, s, n)
	}
	return driver.Status{Device: device, Notes: text, Warnings: under.Warnings}, err
}

// numbers writes a device as the device mapper takes it.
func numbers(d *driver.Device) string {
	return fmt.Sprintf("%d:%d", unix.Major(d.Number), unix.Minor(d.Number))
}

// superblock reads the superblock and compares it with what there is.
func (u *unit) superblock(ctx context.Context, p params, data, hash *driver.Device) (s superblock, err error) {
	const atOffset, atHash = "verity.hash_offset", "verity.root_hash"
	offset := p.HashOffset
	ofData, err := block.Find(data.Number)
	if err != nil {
		return s, err
	}
	ofHash, err := block.Find(hash.Number)
	if err != nil {
		return s, err
	}
	if offset > ofHash.Size-superblockSize {
		return s, errs.At(atOffset, errs.New(errs.Invalid, "%s has only %d bytes", hash.Path, ofHash.Size))
	}
	text, err := u.driver.helper.Read(ctx, hash.Path, unix.O_RDONLY, offset, superblockSize)
	if err != nil {
		return s, err
	}
	if s, err = parse(text); err != nil {
		return s, errs.At(atOffset, errs.New(errs.Invalid, "at byte %d of %s: %w", offset, hash.Path, err))
	}
	switch length := digests[s.Algorithm]; {
	case len(p.RootHash) != 2*length:
		return s, errs.At(atHash, errs.New(errs.Invalid, "has %d digits; the tree is one of %s, with %d", len(p.RootHash), s.Algorithm, 2*length))
	case s.size() > ofData.Size:
		return s, errs.At(atOffset, errs.New(errs.Invalid, "the hash tree is of %d bytes of data, and %s has %d: is it truncated, or the tree another's?", s.size(), data.Path, ofData.Size))
	case data.Number == hash.Number && offset < s.size():
		return s, errs.At(atOffset, errs.New(errs.Invalid, "the hash tree is of %d bytes of data, and lies within them", s.size()))
	case s.end(offset) > ofHash.Size:
		return s, errs.At(atOffset, errs.New(errs.Invalid, "the hash tree ends at byte %d, and %s has %d: is it truncated?", s.end(offset), hash.Path, ofHash.Size))
	}
	return s, nil
}

// firstBlock reads the first block of data, not by way of the page cache. The kernel checks it, and all hashes between it and the root.
func (u *unit) firstBlock(ctx context.Context, path string, s superblock, n notes) error {
	_, err := u.driver.helper.Read(ctx, path, unix.O_RDONLY|unix.O_DIRECT, 0, s.DataBlock)
	if err == nil || !errors.Is(err, unix.EIO) {
		return err
	}
	if status, failed := u.driver.mapper.Status(n.Name); failed == nil && corrupted(status) {
		return errs.At("verity.root_hash", errs.New(errs.Invalid, "the first block of %s fails the check: this is not its root hash, or its data or the hash tree is damaged", n.Under.Device.Path))
	}
	return fmt.Errorf("read the first block of %s: %w", n.Under.Device.Path, err)
}

// corrupted reports whether a read has failed the check since the device was made.
func corrupted(status dm.Status) bool { return strings.HasPrefix(status.Text, "C") }

// undo removes what there is of a device that could not come up, and returns why it did not.
func (u *unit) undo(place driver.Placement, status, under driver.Status, cause error) error {
	ctx, cancel := context.WithTimeout(context.Background(), undoTime)
	defer cancel()
	err := u.driver.mapper.Remove(ctx, u.name(place.ID))
	if err == nil {
		err = errors.Join(u.removeNode(status), u.Under.Down(ctx, u.below(place), under))
	}
	if err != nil {
		u.driver.strand(place.ID, under)
		return &driver.Leftovers{Err: errors.Join(cause, err)}
	}
	return cause
}

func (u *unit) removeNode(status driver.Status) error {
	if n, err := driver.NotesOf[notes](status); err != nil || !n.MadeNode {
		return nil
	}
	return u.driver.nodes.Remove(status.Device.Path, status.Device.Number)
}

// Down takes the device away, unless somebody uses it or the one below, and then that.
func (u *unit) Down(ctx context.Context, place driver.Placement, status driver.Status) error {
	return u.uncover(ctx, status, func(under driver.Status) error { return u.Under.Down(ctx, u.below(place), under) })
}

// ForceDown is Down with that of what is below.
func (u *unit) ForceDown(ctx context.Context, place driver.Placement, status driver.Status) (warning string, err error) {
	err = u.uncover(ctx, status, func(under driver.Status) (err error) {
		f, under, ok := driver.As[driver.Forcer](u.Under, under)
		if !ok {
			return u.Under.Down(ctx, u.below(place), under)
		}
		warning, err = f.ForceDown(ctx, u.below(place), under)
		return err
	})
	return warning, err
}

func (u *unit) uncover(ctx context.Context, status driver.Status, down func(under driver.Status) error) error {
	if status.Device == nil {
		return nil
	}
	n, err := driver.NotesOf[notes](status)
	if err != nil {
		return fmt.Errorf("detach %s: %w", status.Device.Path, err)
	}
	if n.bare() {
		return down(n.Under)
	}
	if err := u.free(ctx, n); err != nil {
		return err
	}
	if err := u.driver.mapper.Remove(waits.On(ctx, "device "+n.Under.Device.Path), n.Name); err != nil {
		return err
	}
	u.driver.forget(n.Name)
	err = errors.Join(u.removeNode(status), down(n.Under))
	if errs.Is(err, errs.Conflict) { // somebody was quick; but it is not as it was any more
		err = errs.New(errs.Internal, "%w", err)
	}
	return err
}

// free makes sure that nobody but the device above uses the one below: once the one above is gone there is no way back. A device
// that is the node's own stays, whoever uses it.
func (u *unit) free(ctx context.Context, n notes) error {
	status, err := u.driver.mapper.Status(n.Name)
	if _, owns := u.driver.Coverable.(nodesOwn); owns || errors.Is(err, dm.ErrNone) {
		return nil
	}
	if err != nil {
		return err
	}
	return holders.WhenFree(ctx, func() error {
		users := holders.But(holders.OfDevice(n.Under.Device.Number), block.Name(status.Number))
		if len(users) == 0 {
			return nil
		}
		return holders.InUse("detach", n.Under.Device.Path, holders.ErrPassing, users)
	})
}

// Recover has what is below recovered, and makes sure that what is above is what was made.
func (u *unit) Recover(ctx context.Context, place driver.Placement, status driver.Status) error {
	n, err := driver.NotesOf[notes](status)
	if err == nil {
		err = u.Under.Recover(ctx, u.below(place), n.Under)
	}
	if err != nil {
		return err
	}
	return u.look(status, n)
}

// Inspect implements driver.Unit.
func (u *unit) Inspect(place driver.Placement, status driver.Status, mounts *mounttable.Table) error {
	n, err := driver.NotesOf[notes](status)
	if err != nil {
		return err
	}
	if err := u.Under.Inspect(u.below(place), n.Under, mounts); err != nil {
		return err
	}
	return u.look(status, n)
}

// look looks at the device above. That it is corrupted is an error only if its users are to stop.
func (u *unit) look(status driver.Status, n notes) error {
	if n.bare() {
		return nil
	}
	mapped, err := u.driver.mapper.Status(n.Name)
	switch {
	case errors.Is(err, dm.ErrNone):
		return errs.New(errs.Conflict, "%s is gone: another program removed it; delete the attachment and create it again", status.Device.Path)
	case err != nil:
		return err
	case mapped.Number != status.Device.Number || mapped.Type != "verity" || mapped.Table != n.Table:
		return errs.New(errs.Conflict, "%s has another table: another program changed it; delete the attachment and create it again", status.Device.Path)
	case !corrupted(mapped):
		return nil
	}
	u.driver.note(n.Name, status.Device.Path, n.Under.Device.Path)
	if u.Verity.OnCorruption != models.AttachVerityOnCorruptionStop {
		return nil
	}
	return errs.New(errs.Conflict, "%s is corrupted: a read failed verification against root_hash; repair the image on %s, delete the attachment and create it again", status.Device.Path, n.Under.Device.Path)
}

// Fatal implements driver.FatallyCorrupted.
func (u *unit) Fatal(status driver.Status) bool {
	n, err := driver.NotesOf[notes](status)
	return err == nil && u.Verity.OnCorruption == models.AttachVerityOnCorruptionStop && u.driver.isCorrupted(n.Name)
}

// Changes is whether a check has failed, and what changes below: driver.Changing.
func (u *unit) Changes(status driver.Status) string {
	n, err := driver.NotesOf[notes](status)
	if err != nil {
		return ""
	}
	now := "sound"
	if u.driver.isCorrupted(n.Name) {
		now = "corrupted"
	}
	if below, under, ok := driver.As[driver.Changing](u.Under, n.Under); ok {
		now += " " + below.Changes(under)
	}
	return now
}

// IsStill implements driver.Unit: corruption is found by the kernel.
func (u *unit) IsStill(status driver.Status) bool {
	n, err := driver.NotesOf[notes](status)
	return err == nil && n.bare() && u.Under.IsStill(n.Under)
}

// Covered implements driver.Covering.
func (u *unit) Covered(status driver.Status) (driver.Unit, driver.Status) {
	n, _ := driver.NotesOf[notes](status) // before Up there are none
	return u.Under, n.Under
}

// Verified implements driver.Verified. That an image announces verity is known too late.
func (u *unit) Verified(bool) bool { return !u.Verity.Announced }

// Sweep removes what an Up has left that was cut off.
func (u *unit) Sweep(ctx context.Context, place driver.Placement) error {
	if !u.Verity.Announced || u.driver.mapper.Find(ctx) == nil {
		if err := u.driver.mapper.Remove(ctx, u.name(place.ID)); err != nil {
			return err
		}
	}
	under, stranded, done := u.driver.rescue(place.ID)
	if !stranded {
		return u.Under.Sweep(ctx, u.below(place))
	}
	if err := u.Under.Down(ctx, u.below(place), under); err != nil {
		return err
	}
	done()
	return nil
}

// Show writes the definition, that of what is below included, and what has become of it.
func (u *unit) Show(out driver.Object, status driver.Status, needs []driver.Object) {
	n, err := driver.NotesOf[notes](status)
	up := err == nil && status.Device != nil
	if u.Verity.Announced && (!up || n.bare()) {
		u.Under.Show(out, n.Under, needs)
		return
	}
	p := u.params(n.Under)
	v := &models.AttachVerity{RootHash: new(p.RootHash), HashOffset: p.HashOffset, OnCorruption: new(p.OnCorruption)}
	if p.HashDevice {
		last := len(needs) - 1
		v.HashDevice, needs = needs[last].Attach, needs[:last]
	}
	if up {
		v.State, v.DataDeviceFile = models.AttachVerityStateOk, n.Under.Device.Path
		if u.driver.isCorrupted(n.Name) {
			v.State = models.AttachVerityStateCorrupted
		}
	}
	u.Under.Show(out, n.Under, needs)
	out.Attach.Verity = v
	if status.Device != nil {
		if out.Attach.Identity == nil {
			out.Attach.Identity = &models.Identity{}
		}
		out.Attach.Identity.RootHash = u.Verity.RootHash
	}
}
