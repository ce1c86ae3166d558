// Package layers merges the layers of an OCI image, which are tar archives, into one file system. It trusts no layer: what one asks for is bounded,
// stays below the root, and must be representable.
//
// Layers are read twice: once for names and metadata, which leave a tree in memory, and once for the content of files that are in that tree.
package layers

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/kraken-hpc/imageapi/internal/web/erofs"
)

// MostLayers is how many layers an image may have.
const MostLayers = 128

// Layer is one layer.
type Layer struct {
	File   *os.File
	DiffID string // the digest of the archive without compression; empty: it is not compared
}

// limits bound what layers ask for.
type limits struct {
	entries int   // in all layers
	text    int64 // bytes of names, links and extended attributes
	bytes   int64 // of the archives without compression
}

func usualLimits() limits { return limits{entries: 1 << 20, text: 256 << 20, bytes: 1 << 40} }

// Merge writes the file system that layers, the lowest first, describe together.
func Merge(w io.Writer, layers []Layer, uuid [16]byte) error {
	return merge(w, layers, uuid, usualLimits())
}

func merge(w io.Writer, layers []Layer, uuid [16]byte, most limits) error {
	t := newTree(most)
	for number, layer := range layers {
		t.layer = number
		if err := layer.walk(&t.limits, t.add); err != nil {
			return fmt.Errorf("layer %d: %w", number+1, err)
		}
	}
	wanted := t.files(len(layers))
	var files []*erofs.Node
	for _, list := range wanted {
		for _, f := range list {
			files = append(files, f.node)
		}
	}
	image, err := erofs.Begin(w, t.root, files, uuid)
	if err != nil {
		return err
	}
	for number, layer := range layers {
		if err := layer.copy(image, wanted[number]); err != nil {
			return fmt.Errorf("read layer %d again: %w", number+1, err)
		}
	}
	return image.End()
}

// copy appends the content of files, which are in the order of the layer.
func (l Layer) copy(image *erofs.Image, files []file) error {
	if len(files) == 0 {
		return nil
	}
	most := usualLimits()
	l.DiffID = ""
	err := l.walk(&most, func(_ *tar.Header, entry int, content io.Reader) error {
		if entry != files[0].entry {
			return nil
		}
		if err := image.Append(content); err != nil {
			return err
		}
		if files = files[1:]; len(files) == 0 {
			return errDone
		}
		return nil
	})
	if err == nil {
		err = errors.New("the file is shorter than before")
	}
	if errors.Is(err, errDone) {
		return nil
	}
	return err
}

// errDone ends a walk.
var errDone = errors.New("done")

// walk calls visit for each entry of an archive, with its number.
func (l Layer) walk(most *limits, visit func(h *tar.Header, entry int, content io.Reader) error) error {
	plain, end, err := decompress(io.NewSectionReader(l.File, 0, 1<<62))
	if err != nil {
		return err
	}
	defer end()
	counted := &bounded{Reader: plain, left: &most.bytes}
	if l.DiffID != "" {
		counted.sum = sha256.New()
	}
	archive := tar.NewReader(counted)
	for entry := 0; ; entry++ {
		h, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if err := visit(h, entry, archive); err != nil {
			if errors.Is(err, errDone) {
				return err
			}
			return fmt.Errorf("%.200q: %w", h.Name, err)
		}
	}
	if _, err := io.Copy(io.Discard, counted); err != nil { // the archive ends before its padding
		return err
	}
	return counted.compare(l.DiffID)
}

// bounded counts what is read.
type bounded struct {
	io.Reader
	left *int64
	sum  hash.Hash // nil: none
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if *b.left -= int64(n); *b.left < 0 {
		return n, errors.New("the layers are too large without compression")
	}
	if b.sum != nil {
		b.sum.Write(p[:n])
	}
	return n, err
}

func (b *bounded) compare(digest string) error {
	if digest == "" {
		return nil
	}
	if found := "sha256:" + hex.EncodeToString(b.sum.Sum(nil)); found != digest {
		return fmt.Errorf("its content has the digest %s; the configuration of the image has %s", found, digest)
	}
	return nil
}

// decompress finds out the compression by the first bytes.
func decompress(r io.Reader) (plain io.Reader, end func(), err error) {
	buffered := bufio.NewReaderSize(r, 256<<10)
	start, err := buffered.Peek(4)
	if err != nil && err != io.EOF {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(start, []byte{0x1f, 0x8b}):
		plain, err = gzip.NewReader(buffered)
		return plain, func() {}, err
	case bytes.HasPrefix(start, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		const window = 128 << 20
		d, err := zstd.NewReader(buffered, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(window), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, nil, err
		}
		return d, d.Close, nil
	}
	return buffered, func() {}, nil
}
