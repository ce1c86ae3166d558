package api

import (
	"archive/zip"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/kraken-hpc/imageapi/docs"
	"github.com/kraken-hpc/imageapi/internal/errs"
)

// contentTypes of what the site has; a file of another type is text.
var contentTypes = map[string]string{
	".css": "text/css; charset=utf-8", ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8",
	".json": "application/json", ".svg": "image/svg+xml",
}

// site is the archive of the guides. It is served as it was packed: a file is unpacked only for a client without gzip.
type site struct {
	files  map[string]*zip.File
	policy string
}

func newSite() (*site, error) {
	archive, err := zip.NewReader(strings.NewReader(docs.Site), int64(len(docs.Site)))
	if err != nil {
		return nil, fmt.Errorf("read the guides: %w", err)
	}
	s := &site{files: make(map[string]*zip.File, len(archive.File))}
	for _, f := range archive.File {
		s.files[f.Name] = f
	}
	text, err := archive.Open("manifest.json")
	if err != nil {
		return nil, fmt.Errorf("read the guides: %w", err)
	}
	defer text.Close()
	var manifest struct{ Scripts []string }
	if err := json.NewDecoder(text).Decode(&manifest); err != nil {
		return nil, fmt.Errorf("read the guides: manifest.json: %w", err)
	}
	scripts := "'self'"
	for _, hash := range manifest.Scripts {
		scripts += " '" + hash + "'"
	}
	s.policy = "default-src 'none'; script-src " + scripts + "; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; " +
		"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	return s, nil
}

// page finds what is at a path below the site's: a page has no ".html" in its address.
func (s *site) page(name string) (*document, error) {
	if name == "" || strings.HasSuffix(name, "/") {
		name += "index"
	}
	for _, candidate := range []string{name, name + ".html"} {
		if f := s.files[candidate]; f != nil {
			return packedDocument(f, s.policy)
		}
	}
	return nil, errs.New(errs.NotFound, "the documentation has no page %q: begin with %s/", name, docsPath)
}

// packedDocument wraps the packed bytes of a file in gzip's frame (RFC 1952), which holds the same checksum and size as zip's.
func packedDocument(f *zip.File, policy string) (*document, error) {
	raw, err := f.OpenRaw()
	if err != nil {
		return nil, err
	}
	packed := make([]byte, 0, 18+f.CompressedSize64)
	packed = append(packed, 0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255)
	body, err := io.ReadAll(raw)
	if err != nil {
		return nil, err
	}
	packed = append(packed, body...)
	packed = binary.LittleEndian.AppendUint32(packed, f.CRC32)
	packed = binary.LittleEndian.AppendUint32(packed, uint32(f.UncompressedSize64))
	return &document{
		contentType: cmp.Or(contentTypes[path.Ext(f.Name)], "text/plain; charset=utf-8"),
		policy:      policy, packed: packed,
		tag:   fmt.Sprintf(`W/"%08x-%x"`, f.CRC32, f.UncompressedSize64),
		lasts: strings.HasPrefix(f.Name, "assets/"), // the name has a hash of the content
	}, nil
}
