package main

import (
	"archive/zip"
	"compress/flate"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"time"
)

// manifest is what a server and a test want to know of the archive.
type manifest struct {
	// Scripts are the hashes of the scripts that stand in pages, as a Content-Security-Policy names them.
	Scripts []string `json:"scripts"`
	// Sources is the SHA-256 of the pages that the site was made of.
	Sources string `json:"sources"`
}

var inline = regexp.MustCompile(`(?s)<script(?:\s+id="[^"]*")?>(.*?)</script>`)

// pack writes what is in dir to an archive. The same content gives the same bytes.
func pack(dir, archive string) error {
	contents := map[string][]byte{}
	scripts := map[string]bool{}
	err := filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		if contents[rel], err = os.ReadFile(name); err != nil {
			return err
		}
		if path.Ext(name) == ".html" {
			for _, match := range inline.FindAllSubmatch(contents[rel], -1) {
				sum := sha256.Sum256(match[1])
				scripts["sha256-"+base64.StdEncoding.EncodeToString(sum[:])] = true
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	sum, err := sum(".")
	if err != nil {
		return err
	}
	text, err := json.Marshal(manifest{Scripts: slices.Sorted(maps.Keys(scripts)), Sources: sum})
	if err != nil {
		return err
	}
	contents["manifest.json"] = text
	return writeZip(archive, contents)
}

func writeZip(archive string, contents map[string][]byte) error {
	out, err := os.Create(archive)
	if err != nil {
		return err
	}
	defer out.Close()
	z := zip.NewWriter(out)
	z.RegisterCompressor(zip.Deflate, func(w io.Writer) (io.WriteCloser, error) { return flate.NewWriter(w, flate.BestCompression) })
	for _, name := range slices.Sorted(maps.Keys(contents)) {
		w, err := z.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Deflate, Modified: time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)})
		if err != nil {
			return err
		}
		if _, err := w.Write(contents[name]); err != nil {
			return err
		}
	}
	if err := z.Close(); err != nil {
		return err
	}
	return out.Close()
}

// sum is the checksum of all that the site is made of.
func sum(root string) (string, error) {
	pages, files, err := sources(root)
	if err != nil {
		return "", err
	}
	all := sha256.New()
	maps.Copy(pages, files)
	for _, name := range slices.Sorted(maps.Keys(pages)) {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			return "", err
		}
		one := sha256.Sum256(text)
		all.Write([]byte(name))
		all.Write(one[:])
	}
	return hex.EncodeToString(all.Sum(nil)), nil
}
