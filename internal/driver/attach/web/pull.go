package web

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/keeper"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
	"github.com/kraken-hpc/imageapi/internal/waits"
	"github.com/kraken-hpc/imageapi/internal/web/access"
	"github.com/kraken-hpc/imageapi/internal/web/cache"
	"github.com/kraken-hpc/imageapi/internal/web/keep"
	"github.com/kraken-hpc/imageapi/internal/web/oci"
	"github.com/kraken-hpc/imageapi/internal/web/source"
	"github.com/kraken-hpc/imageapi/models"
)

// pull is an image that is being fetched from a registry.
type pull struct {
	unit     *unit
	ref      oci.Reference
	platform oci.Platform
	config   source.Config
	cache    *cache.Cache
	key      string // of the image in the cache
	image    *image
	manifest oci.Document
	diffIDs  []string
	fetched  int64 // bytes
}

// pull finds the image: in the cache, or what the registry says of it.
func (u *unit) pull(ctx context.Context) (*pull, *cache.Object, error) {
	p := &pull{unit: u}
	var err error
	if p.ref, p.platform, err = u.OCI.parse(); err != nil {
		return nil, nil, err
	}
	a, err := u.access(ctx, target{urls: []string{p.ref.Manifest("", u.OCI.PlainHTTP)}})
	if err == nil {
		p.config, err = configOf(a)
	}
	if err == nil {
		p.cache, err = u.driver.cache.Open()
	}
	if err != nil {
		return nil, nil, err
	}
	digest := p.ref.Digest
	if digest == "" {
		if digest, err = u.resolve(ctx, a, p.ref.Tag); err != nil {
			return nil, nil, err
		}
	}
	const version = "1" // of what is made of an image
	sum := sha256.Sum256([]byte(strings.Join([]string{version, digest, p.platform.String(), u.OCI.Artifact}, "\n")))
	p.key = hex.EncodeToString(sum[:])
	if u.Mode != models.AttachOciModeOnDemand {
		if object, note, ok := p.cache.Made(ctx, p.key); ok && json.Unmarshal(note, &p.image) == nil {
			return p, object, nil
		}
	}
	return p, nil, p.describe(ctx, digest)
}

// resolve asks the registry for the digest of a tag, and waits for a registry that does not answer.
func (u *unit) resolve(ctx context.Context, a access.Access, tag string) (digest string, err error) {
	waiting := u.waiting(ctx)
	defer waiting("")
	err = source.Retry(ctx, a.RetryTimeout, waiting, func(ctx context.Context) (err error) {
		digest, err = a.Resolve(ctx, tag, u.OCI.PlainHTTP)
		return err
	})
	return digest, err
}

// describe reads the manifest and the configuration.
func (p *pull) describe(ctx context.Context, digest string) error {
	d, err := p.document(ctx, digest)
	if err == nil && len(d.Manifests) > 0 {
		m, err := d.Select(p.platform)
		if err != nil {
			return errs.At("oci.platform", errs.New(errs.Invalid, "%w", err))
		}
		digest = m.Digest.String()
		if d, err = p.document(ctx, digest); err == nil && d.Config == nil {
			return errs.New(errs.Remote, "the index of the image leads to another index")
		}
	}
	if err != nil {
		return err
	}
	p.manifest, p.image = d, &image{Digest: digest}
	for _, layer := range d.Layers {
		p.image.Layers = append(p.image.Layers, layer.Digest.String())
	}
	blob, err := d.Blob(p.unit.OCI.Artifact)
	switch {
	case err != nil:
		return errs.At("oci.artifact", errs.New(errs.Invalid, "%w", err))
	case blob != nil:
		p.image.Blob, p.image.Size = blob.Digest.String(), blob.Size
		rootHash, offset, err := oci.Verity(*blob)
		if err != nil {
			return errs.New(errs.Remote, "%w", err)
		}
		if rootHash != "" {
			p.image.Verity = &driver.Verity{RootHash: rootHash, HashOffset: offset}
		}
		return p.configure(ctx, 0)
	}
	return p.configure(ctx, len(d.Layers))
}

func (p *pull) document(ctx context.Context, digest string) (oci.Document, error) {
	data, err := p.read(ctx, p.ref.Manifest(digest, p.unit.OCI.PlainHTTP), digest, oci.MostMetadata)
	if err != nil {
		return oci.Document{}, err
	}
	d, err := oci.ParseDocument(data)
	if err != nil {
		return d, errs.New(errs.Remote, "%w", err)
	}
	return d, nil
}

// configure reads the configuration of the image. That of an artifact need not be one.
func (p *pull) configure(ctx context.Context, layers int) error {
	at := p.manifest.Config
	data, err := p.read(ctx, p.ref.Blob(at.Digest.String(), p.unit.OCI.PlainHTTP), at.Digest.String(), min(at.Size, oci.MostMetadata))
	if err != nil {
		return err
	}
	c, err := oci.ParseConfig(data, p.platform, layers)
	if p.image.Blob != "" && err != nil {
		return nil
	}
	if err != nil {
		return errs.New(errs.Remote, "%w", err)
	}
	p.image.Config = &models.OciConfig{
		Env: c.Config.Env, Entrypoint: c.Config.Entrypoint, Cmd: c.Config.Cmd, User: c.Config.User, WorkingDir: c.Config.WorkingDir, Labels: c.Config.Labels,
	}
	for _, id := range c.RootFS.DiffIDs {
		p.diffIDs = append(p.diffIDs, id.String())
	}
	const most = 64 << 10 // the journal and each response have it
	if text, err := json.Marshal(p.image); err != nil || len(text) > most {
		return errs.New(errs.Remote, "the configuration of the image has more than %d bytes", most)
	}
	return nil
}

// read returns a small blob.
func (p *pull) read(ctx context.Context, url, digest string, most int64) ([]byte, error) {
	o, err := p.get(ctx, url, digest, most)
	if err != nil {
		return nil, err
	}
	defer o.Release()
	file, err := os.OpenFile(o.Path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, most))
}

// get returns a blob in the cache.
func (p *pull) get(ctx context.Context, url, digest string, most int64) (*cache.Object, error) {
	return p.cache.Get(ctx, digest, func(ctx context.Context, w *cache.Writer) error {
		c := p.config
		c.URLs, c.Waiting = []string{url}, p.unit.waiting(ctx)
		before := p.fetched
		_, err := source.Download(ctx, c, &atMost{Writer: w, most: most}, func(done, _ int64) { p.fetched = before + done })
		return err
	})
}

// atMost refuses a blob that is larger than the manifest says.
type atMost struct {
	*cache.Writer
	most, has int64
}

func (a *atMost) Write(b []byte) (int, error) {
	if a.has += int64(len(b)); a.has > a.most {
		return 0, errs.New(errs.Remote, "the registry sends more than the %d bytes that the manifest says", a.most)
	}
	return a.Writer.Write(b)
}

// Restart implements source.Sink.
func (a *atMost) Restart() error {
	a.has = 0
	return a.Writer.Restart()
}

// merge makes one file system of all layers, once however many ask for it at a time.
func (p *pull) merge(ctx context.Context, id int64) (*cache.Object, error) {
	unlock, err := p.unit.driver.merges.Lock(ctx, p.key)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if object, _, ok := p.cache.Made(ctx, p.key); ok {
		return object, nil
	}
	var files []*os.File
	for number, layer := range p.manifest.Layers {
		o, err := p.get(ctx, p.ref.Blob(p.image.Layers[number], p.unit.OCI.PlainHTTP), p.image.Layers[number], layer.Size)
		if err != nil {
			return nil, err
		}
		defer o.Release()
		file, err := os.OpenFile(o.Path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		files = append(files, file)
	}
	object, err := p.cache.Get(ctx, "", func(ctx context.Context, w *cache.Writer) error { return p.mergeInto(ctx, w, id, files) })
	if err != nil {
		return nil, err
	}
	return object, p.note(object)
}

// note has the cache find the image without the registry's manifest.
func (p *pull) note(object *cache.Object) error {
	text, err := json.Marshal(p.image)
	if err == nil {
		err = p.cache.Note(object, p.key, text)
	}
	if err != nil {
		object.Release()
	}
	return err
}

// mergeInto has a process without privileges merge layers, and takes what it writes.
func (p *pull) mergeInto(ctx context.Context, w io.Writer, id int64, layers []*os.File) (err error) {
	m := keep.Merging{DiffIDs: p.diffIDs, User: userOf(id)}
	_, _ = hex.Decode(m.UUID[:], []byte(p.image.Digest[len("sha256:"):][:2*len(m.UUID)])) // Plan and ParseDocument have checked it
	text, err := keep.Encode(m)
	if err != nil {
		return err
	}
	from, to, err := os.Pipe()
	if err != nil {
		return err
	}
	defer from.Close()
	defer context.AfterFunc(ctx, func() { from.Close() })()
	keepers, name := p.unit.driver.keepers, p.unit.keeperName(id)
	k, err := keepers.merge(name, text, to, layers)
	to.Close()
	if err != nil {
		return err
	}
	ended := waits.Begin(waits.On(ctx, "image "+p.unit.OCI.Image), "merge its layers")
	defer func() {
		ended(ctx.Err() != nil)
		end, cancel := context.WithTimeout(context.Background(), findTimeout)
		defer cancel()
		err = errors.Join(err, k.Kill(end))
		k.Close()
		err = errors.Join(err, endKeeper(end, &keepers.registry, name))
	}()
	if _, err := io.Copy(w, from); err != nil {
		return cause(ctx, err)
	}
	return merged(ctx, k)
}

// merged receives the result.
func merged(ctx context.Context, k *keeper.Keeper) error {
	m, err := k.Receive(ctx)
	switch {
	case errors.Is(err, io.EOF):
		return errs.New(errs.Remote, "merge the layers of the image: the process ended: do they need more than its memory?")
	case err != nil:
		return err
	case m.Kind == wire.Failed:
		return errs.New(errs.Remote, "merge the layers of the image: %s", m.Field(0))
	}
	return nil
}

// cause is the reason why ctx ended, if it has.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("merge the layers of the image: %w", context.Cause(ctx))
	}
	return err
}
