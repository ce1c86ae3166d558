package web

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/web/cache"
	"github.com/kraken-hpc/imageapi/internal/web/oci"
	"github.com/kraken-hpc/imageapi/models"
)

// OCI is the driver of attachments of kind "oci": an image in a registry. It shares everything with the driver of kind "http" but the way from a
// reference to URLs.
type OCI struct{ *Driver }

// Kind is "oci".
func (OCI) Kind() string { return models.AttachKindOci }

// AnnouncesVerity has package verity look for the annotations of an image.
func (OCI) AnnouncesVerity() {}

// Survey looks for what the driver needs of the kernel.
func (o OCI) Survey(ctx context.Context) driver.Survey { return o.survey(ctx, models.AttachKindOci) }

// Plan checks the definition's form. It connects to no registry.
func (o OCI) Plan(def driver.Object, faults *errs.Faults) (driver.Unit, []driver.Need) {
	if def.Attach == nil || def.Attach.Oci == nil {
		faults.Add("oci", "is required for an attachment of kind oci")
		return nil, nil
	}
	d := def.Attach.Oci
	u := &unit{
		driver: o.Driver, Mark: rand.Text(), Mode: driver.ValueOr(d.Mode, models.AttachOciModeAuto), CAFile: d.CaFile, RetryTimeout: d.RetryTimeout, Connections: 4,
		OCI:  &reference{Image: driver.Value(d.Image), Platform: d.Platform, Artifact: d.Artifact, PlainHTTP: d.PlainHTTP},
		Auth: withoutSecrets(d.Auth), secrets: secrets{Auth: d.Auth},
	}
	u.URLs = []string{"oci://" + u.OCI.Image}
	u.Secrets = u.Mode != models.AttachOciModeWhole && hasSecrets(u.secrets)
	if _, err := oci.ParseReference(u.OCI.Image); err != nil {
		faults.Add("oci.image", "%v", err)
	}
	if _, err := oci.ParsePlatform(u.OCI.Platform); err != nil {
		faults.Add("oci.platform", "%v", err)
	}
	u.check(faults)
	return u, nil
}

// reference is the part of a definition that only kind "oci" has.
type reference struct {
	Image     string `json:"image"`
	Platform  string `json:"platform,omitempty"`
	Artifact  string `json:"artifact,omitempty"`
	PlainHTTP bool   `json:"plain_http,omitempty"`
}

// parse returns the parts, which Plan has checked.
func (r reference) parse() (oci.Reference, oci.Platform, error) {
	ref, err := oci.ParseReference(r.Image)
	if err != nil {
		return ref, oci.Platform{}, fmt.Errorf("oci.image %w", err)
	}
	platform, err := oci.ParsePlatform(r.Platform)
	return ref, platform, err
}

// image is what a registry has said of an image. The journal keeps it, and the cache.
type image struct {
	Digest string            `json:"digest"` // of the manifest
	Layers []string          `json:"layers,omitempty"`
	Config *models.OciConfig `json:"config,omitempty"`
	Blob   string            `json:"blob,omitempty"` // the layer that is a file system; empty: all layers are merged
	Size   int64             `json:"size,omitempty"` // of Blob
	Verity *driver.Verity    `json:"verity,omitempty"`
}

// target is an object that is downloaded or read.
type target struct {
	shown  []string // its URLs, without their queries
	urls   []string // if they are not in the definition
	digest string
	size   int64
	image  *image // of a registry
}

// target returns what a unit downloads or reads.
func (u *unit) target(i *image) target {
	if i == nil {
		return target{shown: u.URLs, digest: u.Digest, size: u.Size}
	}
	ref, _, _ := u.OCI.parse()
	urls := []string{ref.Blob(i.Blob, u.OCI.PlainHTTP)}
	return target{shown: urls, urls: urls, digest: i.Blob, size: i.Size, image: i}
}

// upImage is Up of an image in a registry.
func (u *unit) upImage(ctx context.Context, place driver.Placement) (driver.Status, error) {
	p, object, err := u.pull(ctx)
	if err != nil {
		return driver.Status{}, u.failed(ctx, err)
	}
	status, err := p.up(ctx, place, object)
	if err == nil {
		status.Device.Verity = p.image.Verity
	}
	return status, err
}

// up attaches what the cache has, or what the registry does.
func (p *pull) up(ctx context.Context, place driver.Placement, object *cache.Object) (_ driver.Status, err error) {
	u := p.unit
	if object == nil && p.image.Blob != "" {
		return u.up(ctx, place, u.target(p.image), p.note)
	}
	if object == nil {
		if u.Mode == models.AttachOciModeOnDemand {
			err := errs.New(errs.Invalid, "the image has layers of files, which cannot be read on demand: use mode \"whole\"")
			return driver.Status{}, u.failed(ctx, errs.At("oci.mode", err))
		}
		if object, err = p.merge(ctx, place.ID); err != nil {
			err = u.failed(ctx, err)
			if left := endKeeper(context.Background(), &u.driver.keepers.registry, u.keeperName(place.ID)); left != nil {
				err = &driver.Leftovers{Err: errors.Join(err, left)}
			}
			return driver.Status{}, err
		}
	}
	return u.attached(ctx, place, object, notes{URL: u.URLs[0], Digest: object.Digest, Size: object.Size, Fetched: p.fetched, Image: p.image})
}

// show writes the definition, and what is known of the image.
func (r *reference) show(u *unit, mode string, i *image) *models.AttachOci {
	o := &models.AttachOci{
		Image: &r.Image, Platform: r.Platform, Artifact: r.Artifact, PlainHTTP: r.PlainHTTP, Auth: u.Auth, CaFile: u.CAFile, Mode: new(mode), RetryTimeout: u.RetryTimeout,
	}
	if i != nil {
		o.Digest, o.Layers, o.Config = i.Digest, i.Layers, i.Config
	}
	return o
}

var _ driver.Driver = OCI{}
