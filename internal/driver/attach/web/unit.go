package web

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/logkey"
	"github.com/kraken-hpc/imageapi/internal/mounttable"
	"github.com/kraken-hpc/imageapi/internal/sys/loop"
	"github.com/kraken-hpc/imageapi/internal/web/cache"
	"github.com/kraken-hpc/imageapi/internal/web/source"
	"github.com/kraken-hpc/imageapi/models"
)

// unit is one attachment of an image on a web server.
type unit struct {
	driver          *Driver
	Mark            string             `json:"mark"` // random: tells our loop devices from those of another daemon
	URLs            []string           `json:"urls"` // without their queries
	Headers         map[string]string  `json:"headers,omitempty"`
	Mode            string             `json:"mode"`
	Size            int64              `json:"size,omitempty"`
	Digest          string             `json:"digest,omitempty"`
	ETag            string             `json:"etag,omitempty"`
	CAFile          string             `json:"ca_file,omitempty"`
	CertificateFile string             `json:"client_certificate_file,omitempty"`
	KeyFile         string             `json:"client_key_file,omitempty"`
	Proxy           string             `json:"proxy,omitempty"`
	RetryTimeout    int64              `json:"retry_timeout,omitempty"`
	Connections     int64              `json:"connections"`
	ReadAhead       int64              `json:"read_ahead,omitempty"`
	Auth            *models.RemoteAuth `json:"auth,omitempty"`    // without secrets
	Secrets         bool               `json:"secrets,omitempty"` // it has some
	OCI             *reference         `json:"oci,omitempty"`     // of kind "oci": instead of URLs

	secrets secrets
}

// notes is what Down and a later daemon need beyond the device.
type notes struct {
	Loop     loop.ID `json:"loop"`
	Digest   string  `json:"digest"`
	URL      string  `json:"url"`
	Size     int64   `json:"size"`
	ETag     string  `json:"etag,omitempty"`
	Requests int64   `json:"requests,omitempty"`
	Fetched  int64   `json:"fetched,omitempty"`
	Image    *image  `json:"image,omitempty"` // of kind "oci"

	// Of an image that is read on demand.
	Mode     string          `json:"mode,omitempty"` // empty: whole
	ID       int64           `json:"id,omitempty"`   // of the attachment
	Index    int             `json:"index,omitempty"`
	MadeNode bool            `json:"made_node,omitempty"` // the device node is ours to remove
	Identity source.Identity `json:"identity,omitzero"`
}

func (n notes) onDemand() bool { return n.Mode == models.AttachHTTPModeOnDemand }

func (u *unit) tag(id int64) string { return "imageapi-" + strconv.FormatInt(id, 10) + "-" + u.Mark }

// Up attaches the image: on demand if the definition, the kernel and the server allow that, or as a whole.
func (u *unit) Up(ctx context.Context, place driver.Placement) (driver.Status, error) {
	if u.OCI != nil {
		return u.upImage(ctx, place)
	}
	return u.up(ctx, place, u.target(nil), nil)
}

// up is Up of a target. note is called with an object that was downloaded; it may be nil.
func (u *unit) up(ctx context.Context, place driver.Placement, t target, note func(*cache.Object) error) (driver.Status, error) {
	if u.Mode == models.AttachHTTPModeWhole {
		return u.whole(ctx, place, t, note)
	}
	if u.Mode == models.AttachHTTPModeAuto && u.Digest != "" {
		return u.chosen(ctx, place, t, note, "only a whole image can be compared with http.digest")
	}
	status, err := u.onDemand(ctx, place, t)
	_, left := errors.AsType[*driver.Leftovers](err)
	if err == nil || u.Mode == models.AttachHTTPModeOnDemand || left || !errs.Is(err, errs.Unsupported) && !errors.Is(err, errNoRanges) {
		return status, err
	}
	return u.chosen(ctx, place, t, note, err.Error())
}

// chosen is whole where the mode is "auto".
func (u *unit) chosen(ctx context.Context, place driver.Placement, t target, note func(*cache.Object) error, why string) (driver.Status, error) {
	status, err := u.whole(ctx, place, t, note)
	status.Warnings = append(status.Warnings, fmt.Sprintf(`%s.mode: "auto" chose "whole": %s`, u.kind(), why))
	return status, err
}

// kind is that of the attachment.
func (u *unit) kind() string {
	if u.OCI != nil {
		return models.AttachKindOci
	}
	return models.AttachKindHTTP
}

// whole downloads the image unless the cache has it, and attaches the file.
func (u *unit) whole(ctx context.Context, place driver.Placement, t target, note func(*cache.Object) error) (driver.Status, error) {
	object, n, err := u.fetched(ctx, t)
	if err == nil && note != nil {
		err = note(object)
	}
	if err != nil {
		return driver.Status{}, u.failed(ctx, err)
	}
	return u.attached(ctx, place, object, n)
}

// failed gives the error of an Up its class, and the node its memory back.
func (u *unit) failed(ctx context.Context, err error) error {
	return errors.Join(u.explain(ctx, err), u.trim())
}

// attached attaches a file of the cache.
func (u *unit) attached(ctx context.Context, place driver.Placement, object *cache.Object, n notes) (driver.Status, error) {
	device, err := u.attach(ctx, place.ID, object)
	if err != nil {
		object.Release()
		return driver.Status{}, errors.Join(err, u.trim())
	}
	defer device.Close()
	u.driver.cache.keep(place.ID, object)
	n.Loop = device.ID
	data, err := json.Marshal(n)
	u.driver.log.Debug("image attached", logkey.Object, place.ID, logkey.URL, n.URL, logkey.Device, device.Path, logkey.Cached, object.Cached)
	status := driver.Status{Notes: data, Device: &driver.Device{Path: device.Path, Number: device.Number, Sequence: device.Sequence, ReadOnly: true}}
	if u.Digest == "" && n.Image == nil {
		status.Warnings = append(status.Warnings, "http.digest is not given: without it, and without verity, nothing checks the bytes of the image")
	}
	return status, err
}

// attach makes the loop device.
func (u *unit) attach(ctx context.Context, id int64, object *cache.Object) (*loop.Device, error) {
	file, err := os.OpenFile(object.Path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open the cached image: %w", err)
	}
	defer file.Close()
	const sector = 512
	if object.Size < sector {
		return nil, errs.New(errs.Invalid, "the image at %s has %d bytes; a device has at least %d", u.URLs[0], object.Size, sector)
	}
	tag := u.tag(id)
	u.driver.claims.Own(tag)
	device, err := u.driver.loop.Attach(ctx, file, loop.Options{ReadOnly: true, Mark: tag})
	if err != nil {
		u.driver.claims.Disown(tag)
		return nil, err
	}
	u.driver.claims.Attached(tag, device.Number)
	return device, nil
}

// Down detaches the file. The image stays in the cache until its space is needed.
func (u *unit) Down(ctx context.Context, place driver.Placement, status driver.Status) error {
	if status.Device == nil {
		return nil
	}
	n, err := u.read(status)
	if err != nil {
		return err
	}
	if n.onDemand() {
		return u.detach(ctx, place.ID, status, n, false)
	}
	if err := u.driver.loop.Detach(ctx, status.Device.Path, n.Loop); err != nil {
		return err
	}
	u.driver.claims.Disown(u.tag(place.ID))
	u.driver.cache.release(place.ID)
	return u.driver.cache.Trim(ctx)
}

// ForceDown is Down that has readers of an image on demand get I/O errors.
func (u *unit) ForceDown(ctx context.Context, place driver.Placement, status driver.Status) (warning string, err error) {
	if n, err := u.read(status); err == nil && n.onDemand() {
		return "", u.detach(ctx, place.ID, status, n, true)
	}
	return "", u.Down(ctx, place, status)
}

// Interrupt implements driver.Interruptible for an image that is waited for.
func (u *unit) Interrupt(status driver.Status) error {
	n, err := u.read(status)
	if err != nil || !n.onDemand() {
		return err
	}
	s := u.driver.service(n.ID)
	if is, err := u.present(n.ID, n.Index); err != nil || !is || !s.waits() {
		return err
	}
	s.end()
	return u.driver.nbd.Disconnect(n.Index)
}

func (u *unit) read(status driver.Status) (n notes, err error) {
	if err := json.Unmarshal(status.Notes, &n); err != nil {
		return n, fmt.Errorf("detach the image of %s: read its notes: %w", u.URLs[0], err)
	}
	return n, nil
}

// Restore implements driver.Driver.
func (d *Driver) Restore(data json.RawMessage) (driver.Unit, error) {
	u := &unit{driver: d}
	if err := json.Unmarshal(data, u); err != nil {
		return nil, err
	}
	if len(u.URLs) == 0 {
		return nil, errors.New("a unit without a URL")
	}
	if !u.Secrets {
		u.secrets = secrets{URLs: u.URLs, Auth: u.Auth}
	}
	return u, nil
}

// Recover makes sure that the device is still the one that was attached, and keeps its image in the cache.
func (u *unit) Recover(_ context.Context, place driver.Placement, status driver.Status) error {
	n, err := u.read(status)
	if err != nil {
		return err
	}
	if n.onDemand() {
		return u.recoverDevice(place, status, n)
	}
	u.driver.claims.Attached(u.tag(place.ID), status.Device.Number)
	c, err := u.driver.cache.Open()
	if err != nil {
		return err
	}
	if object, err := c.Use(n.Digest); err == nil {
		u.driver.cache.keep(place.ID, object) // where its file was removed, the device still has it
	}
	return u.Inspect(place, status, nil)
}

// Inspect implements driver.Unit.
func (u *unit) Inspect(place driver.Placement, status driver.Status, _ *mounttable.Table) error {
	n, err := u.read(status)
	if err != nil {
		return err
	}
	if n.onDemand() {
		return u.inspectDevice(place.ID, status, n)
	}
	is, err := u.driver.loop.Lives(status.Device.Path, n.Loop)
	if err == nil && !is {
		u.driver.claims.Disown(u.tag(place.ID)) // the number may be that of another device by now
		err = errs.New(errs.Conflict, "%s is no longer attached to the image of %s: a program detached it; delete the attachment and create it again", status.Device.Path, n.URL)
	}
	return err
}

// Sweep detaches a device that an interrupted Up left.
func (u *unit) Sweep(ctx context.Context, place driver.Placement) error {
	if err := u.sweepDevice(ctx, place.ID); err != nil {
		return err
	}
	path, id, err := u.driver.loop.Marked(ctx, u.tag(place.ID))
	if err == nil && path != "" {
		err = u.driver.loop.Detach(ctx, path, id)
	}
	return errors.Join(err, u.driver.cache.Trim(ctx))
}

// trim is Store.Trim for an Up that failed, whose time may be over.
func (u *unit) trim() error {
	const enough = 5 * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), enough)
	defer cancel()
	return u.driver.cache.Trim(ctx)
}

// Show writes the definition, and the state of the image.
func (u *unit) Show(out driver.Object, status driver.Status, _ []driver.Object) {
	var n notes
	err := errors.New("not up")
	if status.Device != nil {
		n, err = u.read(status) // Inspect reports an error
	}
	out.Attach.Source = u.URLs[0]
	mode := u.Mode
	switch {
	case err == nil && n.onDemand():
		mode = models.AttachHTTPModeOnDemand
	case err == nil:
		mode = models.AttachHTTPModeWhole
	}
	if u.OCI != nil {
		out.Attach.Oci = u.OCI.show(u, mode, n.Image)
	} else {
		out.Attach.HTTP = &models.AttachHTTP{
			Urls: u.URLs, Headers: u.Headers, Auth: u.Auth, Mode: new(mode), Size: u.Size, Digest: u.Digest, Etag: u.ETag, CaFile: u.CAFile, ClientCertificateFile: u.CertificateFile,
			ClientKeyFile: u.KeyFile, Proxy: u.Proxy, RetryTimeout: u.RetryTimeout, Connections: new(u.Connections), ReadAhead: u.ReadAhead,
		}
	}
	if err == nil {
		out.Attach.Identity = n.shown()
	}
	switch h := out.Attach.HTTP; {
	case err == nil && n.onDemand():
		u.showDevice(out, n)
	case err == nil && h != nil:
		h.URL, h.Digest, h.Size, h.Etag = n.URL, n.Digest, n.Size, n.ETag
		h.Fetched, h.Requests, h.Progress = new(n.Fetched), new(n.Requests), new(int64(100))
	}
}

// shown returns the identity of the image.
func (n notes) shown() *models.Identity {
	i := models.Identity{Etag: cmp.Or(n.ETag, n.Identity.ETag), Digest: n.Digest}
	if i == (models.Identity{}) {
		return nil
	}
	return &i
}

// IsStill implements driver.Unit.
func (u *unit) IsStill(status driver.Status) bool {
	n, err := u.read(status)
	return err == nil && !n.onDemand()
}

// Changes is the URL in use and the reason to wait, if there is one: driver.Changing.
func (u *unit) Changes(status driver.Status) string {
	n, err := u.read(status)
	if err != nil || !n.onDemand() {
		return ""
	}
	now := u.driver.service(n.ID).state()
	return now.URL + " " + now.Waiting
}
