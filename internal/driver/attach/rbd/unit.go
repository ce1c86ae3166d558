package rbd

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/attach/rbd/cluster"
	"github.com/kraken-hpc/imageapi/internal/driver/secretfile"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/logkey"
	"github.com/kraken-hpc/imageapi/internal/sys/rbd"
	"github.com/kraken-hpc/imageapi/internal/waits"
	"github.com/kraken-hpc/imageapi/models"
)

// unit is one mapped image.
type unit struct {
	driver    *Driver
	secret    *secret           // in no journal, answer or log; a pointer, since fmt prints what a private field holds
	recovered bool              // from an earlier daemon
	Mark      string            `json:"mark"` // random: tells what is ours from what is another daemon's
	Monitors  []string          `json:"monitors"`
	Pool      string            `json:"pool"`
	Image     string            `json:"image"`
	Snapshot  string            `json:"snapshot,omitempty"`
	User      string            `json:"user"`
	Options   models.RbdOptions `json:"options"` // without name and secret
}

// notes is what Down needs.
type notes struct {
	Mapping  rbd.Identity `json:"mapping"`
	MadeNode bool         `json:"made_node,omitempty"` // whether its device node is ours to remove
}

// Up maps the image, in this order:
//
//  1. read the secret, if it is in a file;
//  2. load the kernel's client;
//  3. resolve the monitors;
//  4. ask the cluster, if this build can: its answers are better than the kernel's;
//  5. map;
//  6. compare with what was meant, or unmap.
func (u *unit) Up(ctx context.Context, place driver.Placement) (driver.Status, error) {
	key, err := u.key(ctx)
	if err != nil {
		return driver.Status{}, err
	}
	ctx = waits.On(ctx, u.cluster())
	if err := u.driver.bus.Load(ctx); err != nil {
		return driver.Status{}, err
	}
	spec, warnings, err := u.spec(ctx)
	if err != nil {
		return driver.Status{}, fmt.Errorf("map %s: %w", u.name(), err)
	}
	users, err := u.ask(ctx, spec)
	if err != nil {
		return driver.Status{}, fmt.Errorf("map %s: %w", u.name(), err)
	}
	spec.Options = append(spec.Options, u.limits(ctx)...)
	device, err := u.driver.bus.Map(ctx, spec, key, u.keys(place.ID)+rand.Text())
	if err != nil && users != "" && errs.Is(err, errs.Conflict) {
		err = errs.New(errs.Conflict, "%w; its clients: %s", err, users)
	}
	if err != nil {
		return driver.Status{}, u.undo(place.ID, err)
	}
	status, err := u.status(device)
	if err != nil {
		return driver.Status{}, u.undo(place.ID, err)
	}
	status.Warnings = append(u.ignored(), warnings...)
	u.driver.log.Debug("image mapped", logkey.Object, place.ID, logkey.Image, u.name(), logkey.Device, status.Device.Path, logkey.ReadOnly, device.ReadOnly)
	return status, nil
}

// Check implements driver.Unit: steps 1 to 3 of Up. What was loaded there is only looked for.
func (u *unit) Check(ctx context.Context, _ driver.Placement) (driver.Preview, error) {
	f := driver.Preview{
		Does:    "map the image " + u.name(),
		Status:  driver.Status{Device: &driver.Device{ReadOnly: u.readOnly(), Remote: true}, Warnings: u.ignored()},
		Unknown: []string{"whether the cluster answers, has this image, and lets the user map it"},
	}
	if _, err := u.key(ctx); err != nil {
		return f, err
	}
	if err := u.driver.bus.Find(ctx); err != nil {
		return f, err
	}
	_, warnings, err := u.spec(ctx)
	if err != nil {
		return f, fmt.Errorf("map %s: %w", u.name(), err)
	}
	f.Status.Warnings = append(f.Status.Warnings, warnings...)
	return f, nil
}

// key reads the user's key from its file, if it is in one, and decodes it.
func (u *unit) key(ctx context.Context) (rbd.Secret, error) {
	const field = "rbd.options.secret_file"
	if file := u.Options.SecretFile; file != "" {
		text, err := secretfile.Read(ctx, u.driver.helper, file)
		if err != nil {
			return nil, errs.At(field, err)
		}
		*u.secret = secret(text)
	}
	key, fault := u.secret.decode()
	if fault != "" {
		return nil, errs.At(field, errs.New(errs.Invalid, "the secret %s", fault)) // of one in the request Plan has said it
	}
	return key, nil
}

// keys is how the descriptions of the keys begin that the object with an id is mapped with.
func (u *unit) keys(id int64) string {
	return "imageapi-" + strconv.FormatInt(id, 10) + "-" + u.Mark + "-"
}

// undoing is how much longer than its context Up may take to undo what is half done.
const undoing = 2 * time.Second

// undo removes what there is of a mapping that failed, and returns why it did.
func (u *unit) undo(id int64, cause error) error {
	ctx, cancel := context.WithTimeout(context.Background(), undoing)
	defer cancel()
	if err := u.driver.bus.Sweep(ctx, u.keys(id)); err != nil {
		return &driver.Leftovers{Err: errors.Join(cause, err)}
	}
	return cause
}

// live makes sure that the device is what was meant, and puts down what it is.
func (u *unit) status(device rbd.Device) (driver.Status, error) {
	if want := u.Options.Fsid; want != "" && !strings.EqualFold(want, device.Cluster) {
		return driver.Status{}, errs.New(errs.Invalid, "map %s: the monitors are of cluster %s, not of fsid %s", u.name(), device.Cluster, want)
	}
	if !u.Options.Exclusive { // with it the kernel sees to this
		rival, found, err := u.driver.bus.Rival(device)
		if err != nil {
			return driver.Status{}, err
		}
		if found {
			return driver.Status{}, &driver.Held{Device: "/dev/" + rival.Name(), Err: errs.New(errs.Conflict, "map %s: /dev/%s of this node is the same image, and not read-only: unmap it, use it, or map with ro", u.name(), rival.Name())}
		}
	}
	path, made, err := u.driver.nodes.Ensure(device.Number)
	if err != nil {
		return driver.Status{}, err
	}
	text, err := json.Marshal(notes{Mapping: device.Identity, MadeNode: made})
	return driver.Status{
		Device: &driver.Device{Path: path, Number: device.Number, Sequence: device.Sequence, ReadOnly: device.ReadOnly, Remote: true},
		Notes:  text,
	}, err
}

// Down unmaps the image, if the device is still the one of Up and nobody uses it.
func (u *unit) Down(ctx context.Context, place driver.Placement, status driver.Status) error {
	if status.Device == nil {
		return nil
	}
	n, err := driver.NotesOf[notes](status)
	if err != nil {
		return fmt.Errorf("unmap %s: %w", status.Device.Path, err)
	}
	if u.recovered {
		if err := u.driver.bus.Outlive(ctx, u.keys(place.ID)); err != nil {
			return fmt.Errorf("unmap %s: %w", status.Device.Path, err)
		}
	}
	if err := u.driver.bus.Unmap(waits.On(ctx, u.cluster()), n.Mapping, u.Options.Force); err != nil {
		return err
	}
	u.driver.log.Debug("image unmapped", logkey.Object, place.ID, logkey.Image, u.name(), logkey.Device, status.Device.Path)
	if n.MadeNode {
		return u.driver.nodes.Remove(status.Device.Path, status.Device.Number)
	}
	return nil
}

// Show writes the definition without the secret, and the number of the device.
func (u *unit) Show(out driver.Object, status driver.Status, _ []driver.Object) {
	o := u.Options
	o.Name = new(u.User)
	r := &models.AttachRbd{Monitors: u.Monitors, Pool: new(u.Pool), Image: new(u.Image), Snapshot: u.Snapshot, Options: &o}
	if n, err := driver.NotesOf[notes](status); err == nil {
		r.DeviceID = int64(n.Mapping.ID)
	}
	out.Attach.Rbd, out.Attach.Source = r, u.name()
}

// IsStill implements driver.Unit.
func (*unit) IsStill(driver.Status) bool { return true }

// cluster is how the cluster is called where it is waited for.
func (u *unit) cluster() string { return "Ceph monitors " + strings.Join(u.Monitors, ",") }

// readOnly reports whether the mapping is.
func (u *unit) readOnly() bool { return u.Options.Ro || u.Snapshot != "" }

// name names the image as rbd(8) does.
func (u *unit) name() string {
	return rbd.Spec{Pool: u.Pool, Namespace: u.Options.Namespace, Image: u.Image, Snapshot: u.Snapshot}.String()
}

// messenger is the version of the protocol that is spoken with the monitors.
func (u *unit) messenger() int {
	if modes[u.Options.MsMode] {
		return 2
	}
	return 1
}

// ask asks the cluster about the image, if this build can, and returns who uses it.
func (u *unit) ask(ctx context.Context, s rbd.Spec) (users string, err error) {
	if !cluster.Available {
		return "", nil
	}
	known, err := u.driver.bus.Features()
	if err != nil {
		return "", err
	}
	answer, err := cluster.Look(ctx, cluster.Query{
		Monitors: s.Monitors, Messenger: u.messenger(), User: u.User, Secret: string(*u.secret),
		Pool: u.Pool, Namespace: u.Options.Namespace, Image: u.Image, Snapshot: u.Snapshot,
		Timeout: u.timeout(),
	})
	if err != nil {
		return "", err
	}
	return usersOf(answer), u.judge(answer, known)
}

// usersOf names the clients of an image.
func usersOf(a cluster.Answer) string {
	texts := make([]string, len(a.Users))
	for i, user := range a.Users {
		texts[i] = fmt.Sprintf("%s at %s %s", user.Client, user.Address, user.How)
	}
	return strings.Join(texts, "; ")
}

// migrating is the one feature without which an image can't even be read.
const migrating = 1 << 9

// judge tells from what the cluster says whether the image can be mapped.
func (u *unit) judge(a cluster.Answer, known uint64) error {
	lacking := a.Features &^ known
	if u.readOnly() {
		lacking &= migrating
	}
	if lacking != 0 {
		return errs.New(errs.Unsupported, "the image has features that this kernel lacks: %s: disable them (rbd feature disable), map it with ro if it is not being migrated, or use a newer kernel", rbd.FeatureNames(lacking))
	}
	if u.readOnly() || u.Options.Exclusive || len(a.Users) == 0 {
		return nil
	}
	return errs.New(errs.Conflict, "the image is in use: %s: unmap it there, or map it with ro, or with exclusive if its users share it", usersOf(a))
}
