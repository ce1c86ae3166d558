package web

import (
	"context"
	"errors"
	"fmt"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/waits"
	"github.com/kraken-hpc/imageapi/internal/web/cache"
	"github.com/kraken-hpc/imageapi/internal/web/source"
)

// fetched returns the image in the cache, and in use.
func (u *unit) fetched(ctx context.Context, t target) (*cache.Object, notes, error) {
	n := notes{URL: t.shown[0], ETag: u.ETag, Image: t.image}
	c, err := u.driver.cache.Open()
	if err != nil {
		return nil, n, err
	}
	config, err := u.sourceConfig(ctx, t)
	if err != nil {
		return nil, n, err
	}
	object, err := c.Get(ctx, t.digest, func(ctx context.Context, w *cache.Writer) error { return u.fetch(ctx, config, t, w, &n) })
	if err != nil {
		return nil, n, err
	}
	if t.size != 0 && object.Size != t.size {
		object.Release()
		return nil, n, errs.New(errs.Remote, "the image at %s has %d bytes, not %d: the image changed, or size is that of another image", n.URL, object.Size, t.size)
	}
	n.Digest, n.Size = object.Digest, object.Size
	return object, n, nil
}

// fetch downloads the image into the cache.
func (u *unit) fetch(ctx context.Context, config source.Config, t target, w *cache.Writer, n *notes) error {
	config.Waiting = u.waiting(ctx)
	identity, err := source.Download(ctx, config, w, func(done, _ int64) { n.Fetched = done })
	if err != nil {
		return err
	}
	n.URL, n.ETag = t.shown[identity.URL], identity.ETag
	if u.ETag != "" && identity.ETag != u.ETag {
		return errs.New(errs.Remote, "the image at %s has the entity tag %s, not %s: the image changed, or etag is that of another image", n.URL, identity.ETag, u.ETag)
	}
	return nil
}

// waiting reports what a download waits for, until it does not.
func (u *unit) waiting(ctx context.Context) func(reason string) {
	var end func(bool)
	return func(reason string) {
		if end != nil {
			end(false)
			end = nil
		}
		if reason != "" {
			end = waits.Begin(waits.On(ctx, title(u.URLs[0])), reason)
		}
	}
}

// explain gives an error of a download its class.
func (u *unit) explain(ctx context.Context, err error) error {
	if errs.ClassOf(err) != errs.Internal {
		return err
	}
	if ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) {
		return errs.New(errs.Deadline, "download the image of %s: not complete in time: %w", u.URLs[0], err)
	}
	return errs.New(errs.Remote, "%w", fmt.Errorf("download the image: %w", err))
}
