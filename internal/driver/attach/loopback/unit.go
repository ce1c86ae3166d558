package loopback

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/logkey"
	"github.com/kraken-hpc/imageapi/internal/sys/block"
	"github.com/kraken-hpc/imageapi/internal/sys/loop"
	"github.com/kraken-hpc/imageapi/models"
)

// unit is one loopback attachment.
type unit struct {
	driver         *Driver
	Mark           string `json:"mark,omitempty"` // random: tells what is ours from what is another daemon's
	Path           string `json:"path"`
	Base           string `json:"base"`
	ReadPartitions bool   `json:"readPartitions,omitempty"`
	ReadOnly       bool   `json:"ro,omitempty"` // as asked; what came of it is in Status
}

// notes is what Down needs beyond the device.
type notes struct {
	Loop  loop.ID `json:"loop"`
	Nodes []int   `json:"nodes,omitempty"` // indices in Status.Device.Partitions whose device nodes we made

	File *models.FileIdentity `json:"file,omitempty"` // the file
	Root string               `json:"root,omitempty"` // the directory that its path starts from
}

// tag is what the kernel keeps with the device of the object that has an id.
func (u *unit) tag(id int64) string { return "imageapi-" + strconv.FormatInt(id, 10) + "-" + u.Mark }

// Up attaches the file and makes its partitions.
func (u *unit) Up(ctx context.Context, place driver.Placement) (driver.Status, error) {
	src, err := u.open(ctx, place)
	if err != nil {
		return driver.Status{}, err
	}
	defer src.Close()
	o := loop.Options{ReadOnly: src.readOnly, Remote: src.remote, Buffered: src.buffered, Mark: u.tag(place.ID)}
	if u.ReadPartitions {
		o.Sector = block.TableSector(src)
	}
	u.driver.claims.Own(o.Mark)
	device, err := u.driver.loop.Attach(ctx, src.File, o)
	if err != nil {
		u.driver.claims.Disown(o.Mark)
		return driver.Status{}, err
	}
	status, err := u.status(ctx, device, src)
	if err != nil {
		err = errors.Join(err, device.Release())
		u.driver.claims.Disown(o.Mark)
		return driver.Status{}, err
	}
	device.Close()
	u.driver.claims.Attached(o.Mark, device.Number)
	u.driver.log.Debug("file attached", logkey.Object, place.ID, logkey.Path, u.Path, logkey.Device, device.Path, logkey.ReadOnly, device.Info.ReadOnly)
	return status, nil
}

// live makes the partitions, or none of them, and puts down what there is now.
func (u *unit) status(ctx context.Context, device *loop.Device, src source) (driver.Status, error) {
	n := notes{Loop: device.ID, Root: src.root}
	var err error
	if n.File, err = identify(src.File); err != nil {
		return driver.Status{}, err
	}
	d := &driver.Device{
		Path: device.Path, Number: device.Number, Sequence: device.Sequence, ReadOnly: device.Info.ReadOnly, Remote: src.remote,
	}
	if u.ReadPartitions {
		parts, err := u.partitions(ctx, device)
		if err == nil {
			d.Partitions, n.Nodes, err = u.nodes(parts)
		}
		if err != nil {
			return driver.Status{}, errors.Join(err, u.removePartitions(device), u.removeNodes(d.Partitions, n.Nodes))
		}
	}
	text, err := json.Marshal(n)
	return driver.Status{Device: d, Notes: text}, err
}

// partitions makes the kernel know the partitions: by itself if it can read their table, else we read it.
func (u *unit) partitions(ctx context.Context, device *loop.Device) ([]block.Partition, error) {
	if err := device.Scan(ctx); err != nil {
		return nil, err
	}
	if parts, err := block.Partitions(device.Number); err != nil || len(parts) > 0 {
		return parts, err
	}
	table, err := block.ReadTable(device.File(), device.Info.Size, device.Info.Sector)
	if err != nil {
		return nil, fmt.Errorf("attach %q: %w", u.Path, err)
	}
	if len(table) == 0 {
		return nil, errs.New(errs.Invalid, "attach %q: its partition table is empty: leave out readPartitions", u.Path)
	}
	for _, p := range table {
		if err := block.AddPartition(u.driver.loop.Failpoint, device.File(), p); err != nil {
			return nil, err
		}
	}
	return block.Partitions(device.Number)
}

// nodes makes sure that each partition has a device node, and tells which of them we made, also with an error.
func (u *unit) nodes(parts []block.Partition) (all []driver.Partition, made []int, err error) {
	for i, p := range parts {
		path, isNew, err := u.driver.loop.Nodes.Ensure(p.Number)
		if err != nil {
			return all, made, err
		}
		all = append(all, driver.Partition{Index: p.Index, Path: path, Number: p.Number, Start: p.Start, Size: p.Size})
		if isNew {
			made = append(made, i)
		}
	}
	return all, made, nil
}

func (u *unit) removeNodes(parts []driver.Partition, made []int) error {
	var all error
	for _, i := range made {
		all = errors.Join(all, u.driver.loop.Nodes.Remove(parts[i].Path, parts[i].Number))
	}
	return all
}

func (u *unit) removePartitions(device *loop.Device) error {
	parts, err := block.Partitions(device.Number)
	for _, p := range parts {
		err = errors.Join(err, block.DeletePartition(u.driver.loop.Failpoint, device.File(), p.Index))
	}
	return err
}

// Down detaches the file, if the device is still the one of Up and nobody uses it.
func (u *unit) Down(ctx context.Context, place driver.Placement, status driver.Status) error {
	if status.Device == nil {
		return nil
	}
	var n notes
	if err := json.Unmarshal(status.Notes, &n); err != nil {
		return fmt.Errorf("detach %s: read its notes: %w", status.Device.Path, err)
	}
	if err := u.settle(ctx, place, status.Device); err != nil {
		return err
	}
	if err := u.driver.loop.Detach(ctx, status.Device.Path, n.Loop); err != nil {
		return err
	}
	u.driver.claims.Disown(u.tag(place.ID))
	u.driver.log.Debug("file detached", logkey.Object, place.ID, logkey.Path, u.Path, logkey.Device, status.Device.Path)
	return u.removeNodes(status.Device.Partitions, n.Nodes)
}

// settle has a helper wait for who has the file: the kernel closes it, and writes what is left to write, in the thread that detaches the
// device. After this it has nothing to wait for, unless who has the file goes in that very moment. A file that is gone is fine.
func (u *unit) settle(ctx context.Context, place driver.Placement, device *driver.Device) error {
	h, left := u.driver.helper, &u.driver.left
	if !device.Remote || h == nil {
		return nil
	}
	if err := left.Settle(ctx, place.ID, "detach "+device.Path); err != nil {
		return err
	}
	root := "/"
	if len(place.Needs) > 0 && place.Needs[0].Tree != nil {
		root = place.Needs[0].Tree.Path
	}
	found, err := h.Open(ctx, root, u.Path, unix.O_PATH)
	if err == nil {
		var file *os.File
		if file, err = h.Reopen(ctx, found, unix.O_RDONLY|unix.O_NONBLOCK); err == nil {
			err = h.Discard(ctx, file)
		}
		found.Close()
	}
	if err = left.Keep(place.ID, err); errs.Is(err, errs.Deadline) {
		return errs.New(errs.Deadline, "detach %s: %w", device.Path, err)
	}
	return nil
}

// Show writes the definition, the mount whole, and what the device has become.
func (u *unit) Show(out driver.Object, status driver.Status, needs []driver.Object) {
	l := &models.AttachLoopback{Path: new(u.Path), Base: new(u.Base), ReadPartitions: new(u.ReadPartitions), Ro: new(u.ReadOnly)}
	out.Attach.Source = u.Path
	if len(needs) > 0 {
		l.Mount = needs[0].Mount
		out.Attach.Source = fmt.Sprintf("%s in %d", u.Path, l.Mount.ID)
	}
	if status.Device != nil {
		l.Ro = new(status.Device.ReadOnly)
		for _, p := range status.Device.Partitions {
			l.Partitions = append(l.Partitions, &models.Partition{Index: int64(p.Index), DeviceFile: p.Path, Start: p.Start, Size: p.Size})
		}
	}
	out.Attach.Loopback, out.Attach.Identity = l, u.identity(status)
}

// IsStill implements driver.Unit.
func (*unit) IsStill(driver.Status) bool { return true }
