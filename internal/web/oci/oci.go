// Package oci reads what registries say of images: references, manifests, indexes and configurations. It trusts none of it.
package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry"

	"github.com/kraken-hpc/imageapi/internal/web/layers"
)

// MostMetadata is how long a manifest or configuration may be, in bytes.
const MostMetadata = 4 << 20

// Accept is the header of a request for a manifest.
var Accept = strings.Join([]string{v1.MediaTypeImageIndex, v1.MediaTypeImageManifest, dockerList, dockerManifest}, ", ")

const (
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
)

var digestForm = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// Reference is REGISTRY[:PORT]/REPOSITORY:TAG or …@DIGEST.
type Reference struct {
	Host       string // to connect to, with its port
	Repository string
	Tag        string
	Digest     string // instead of a tag
}

// ParseReference reads a reference. The error says what is wrong with it.
func ParseReference(text string) (Reference, error) {
	r, err := registry.ParseReference(text)
	switch {
	case err != nil:
		return Reference{}, errors.New("is not REGISTRY[:PORT]/REPOSITORY:TAG or REGISTRY[:PORT]/REPOSITORY@sha256:DIGEST")
	case r.Reference == "":
		return Reference{}, errors.New("has no tag and no digest: add :latest, or better a digest")
	case !strings.Contains(r.Reference, ":"):
		return Reference{Host: r.Host(), Repository: r.Repository, Tag: r.Reference}, nil
	case !digestForm.MatchString(r.Reference):
		return Reference{}, errors.New("has a digest that is not sha256: and 64 hexadecimal digits in lower case")
	}
	return Reference{Host: r.Host(), Repository: r.Repository, Digest: r.Reference}, nil
}

// Manifest returns the URL of a manifest.
func (r Reference) Manifest(digest string, plainHTTP bool) string {
	return r.url("manifests", digest, plainHTTP)
}

// Blob returns the URL of a blob.
func (r Reference) Blob(digest string, plainHTTP bool) string {
	return r.url("blobs", digest, plainHTTP)
}

func (r Reference) url(what, digest string, plainHTTP bool) string {
	scheme := "https"
	if plainHTTP {
		scheme = "http"
	}
	return fmt.Sprintf("%s://%s/v2/%s/%s/%s", scheme, r.Host, r.Repository, what, digest)
}

// Platform is an operating system, a processor, and perhaps a variant of it.
type Platform struct{ OS, Architecture, Variant string }

// ParsePlatform reads OS/ARCHITECTURE[/VARIANT]; an empty text is the node's platform.
func ParsePlatform(text string) (Platform, error) {
	if text == "" {
		return Platform{OS: "linux", Architecture: runtime.GOARCH}, nil
	}
	parts := strings.Split(text, "/")
	if len(parts) < 2 || len(parts) > 3 || slices.Contains(parts, "") {
		return Platform{}, errors.New("is not OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT, such as linux/amd64")
	}
	return Platform{parts[0], parts[1], strings.Join(parts[2:], "")}, nil
}

// String is the form that ParsePlatform reads.
func (p Platform) String() string {
	return strings.TrimSuffix(p.OS+"/"+p.Architecture+"/"+p.Variant, "/")
}

func (p Platform) fits(other v1.Platform) bool {
	return p.OS == other.OS && p.Architecture == other.Architecture && (p.Variant == "" || p.Variant == other.Variant)
}

// Document is an index or a manifest.
type Document struct {
	SchemaVersion int               `json:"schemaVersion"`
	Manifests     []v1.Descriptor   `json:"manifests"`
	Config        *v1.Descriptor    `json:"config"`
	Layers        []v1.Descriptor   `json:"layers"`
	Annotations   map[string]string `json:"annotations"`
}

// ParseDocument reads an index or a manifest.
func ParseDocument(data []byte) (d Document, err error) {
	if err := json.Unmarshal(data, &d); err != nil {
		return d, errors.New("the manifest is malformed")
	}
	switch {
	case d.SchemaVersion != 2:
		return d, fmt.Errorf("the manifest has the unknown version %d", d.SchemaVersion)
	case (len(d.Manifests) > 0) == (d.Config != nil):
		return d, errors.New("the manifest is neither an index nor the manifest of an image")
	case len(d.Layers) > layers.MostLayers:
		return d, fmt.Errorf("the image has more than %d layers", layers.MostLayers)
	}
	all := slices.Concat(d.Manifests, d.Layers)
	if d.Config != nil {
		all = append(all, *d.Config)
	}
	for _, part := range all {
		if !digestForm.MatchString(part.Digest.String()) || part.Size < 0 {
			return d, fmt.Errorf("the manifest names a part by %.100q, which is no digest of the form sha256:…, or with a negative size", part.Digest)
		}
	}
	return d, nil
}

// Select returns the manifest of a platform in an index.
func (d Document) Select(p Platform) (v1.Descriptor, error) {
	var has []string
	for _, m := range d.Manifests {
		if m.Platform == nil {
			continue
		}
		if p.fits(*m.Platform) {
			return m, nil
		}
		has = append(has, fmt.Sprintf("%.40q", Platform{m.Platform.OS, m.Platform.Architecture, m.Platform.Variant}))
	}
	return v1.Descriptor{}, fmt.Errorf("the image is not there for %s, but for %s: set platform", p, strings.Join(has[:min(len(has), 20)], ", "))
}

// isLayer tells whether a media type is that of a layer with files.
func isLayer(mediaType string) bool {
	return strings.HasPrefix(mediaType, "application/vnd.oci.image.layer.") && !strings.HasSuffix(mediaType, "+encrypted") ||
		strings.HasPrefix(mediaType, "application/vnd.docker.image.rootfs.")
}

// Blob returns the part that is an image of a file system, or nil if the parts are layers to merge.
func (d Document) Blob(artifact string) (*v1.Descriptor, error) {
	var found []v1.Descriptor
	for _, layer := range d.Layers {
		if artifact == "" && !isLayer(layer.MediaType) || artifact != "" && (layer.MediaType == artifact || layer.Annotations[v1.AnnotationTitle] == artifact) {
			found = append(found, layer)
		}
	}
	switch {
	case len(found) == 1 && (artifact != "" || len(d.Layers) == 1):
		return &found[0], nil
	case len(found) == 0 && artifact == "" && len(d.Layers) > 0:
		return nil, nil
	}
	var has []string
	for _, layer := range d.Layers {
		has = append(has, fmt.Sprintf("%.100q", layer.MediaType+" "+layer.Annotations[v1.AnnotationTitle]))
	}
	return nil, fmt.Errorf("the image has no parts, or not exactly one for artifact %q: set artifact to a media type or title of %s", artifact, strings.Join(has[:min(len(has), 20)], ", "))
}

// The annotations of a layer that is a file system with a hash tree for dm-verity behind it.
const (
	AnnotationRootHash   = "io.github.kraken-hpc.imageapi.verity.root-hash"
	AnnotationHashOffset = "io.github.kraken-hpc.imageapi.verity.hash-offset"
)

var rootHashForm = regexp.MustCompile(`^[0-9a-f]{64,128}$`)

// Verity reads these annotations; without them rootHash is empty.
func Verity(layer v1.Descriptor) (rootHash string, offset int64, err error) {
	rootHash, at := layer.Annotations[AnnotationRootHash], layer.Annotations[AnnotationHashOffset]
	if rootHash == "" {
		return "", 0, nil
	}
	offset, err = strconv.ParseInt(at, 10, 64)
	if err != nil || offset <= 0 || offset >= layer.Size || !rootHashForm.MatchString(rootHash) {
		return "", 0, fmt.Errorf("the annotations for verity are not a root hash in lower case and an offset in the layer: %.150q, %.30q", rootHash, at)
	}
	return rootHash, offset, nil
}

// Config is the part of an image's configuration that matters.
type Config struct {
	v1.Platform
	Config v1.ImageConfig `json:"config"`
	RootFS v1.RootFS      `json:"rootfs"`
}

// ParseConfig reads the configuration of an image with a number of layers.
func ParseConfig(data []byte, p Platform, layers int) (c Config, err error) {
	if err := json.Unmarshal(data, &c); err != nil {
		return c, errors.New("the configuration of the image is malformed")
	}
	if c.OS != "" && !p.fits(c.Platform) {
		return c, fmt.Errorf("the image is for %.40q, not for %s", Platform{c.OS, c.Architecture, c.Variant}, p)
	}
	if len(c.RootFS.DiffIDs) != layers {
		return c, fmt.Errorf("the configuration of the image has %d layers, and the manifest %d", len(c.RootFS.DiffIDs), layers)
	}
	return c, nil
}
