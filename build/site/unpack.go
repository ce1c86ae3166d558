package main

import (
	"archive/zip"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
)

// Parts of a page that only a server can give to a browser: scripts are modules, which no browser loads from a file.
var (
	scripts  = regexp.MustCompile(`(?s)<script.*?</script>|<link rel="(?:module)?preload"[^>]*>`)
	absolute = regexp.MustCompile(`((?:href|src)=")` + regexp.QuoteMeta(base) + `([^"#]*)`)
)

// unpack writes the pages of an archive as files that a browser opens without a server, and so without the search.
func unpack(archive, dir string) error {
	z, err := zip.OpenReader(archive)
	if err != nil {
		return err
	}
	defer z.Close()
	for _, f := range z.File {
		if path.Ext(f.Name) == ".js" || path.Ext(f.Name) == ".json" && !strings.HasPrefix(f.Name, "examples/") {
			continue
		}
		in, err := f.Open()
		if err != nil {
			return err
		}
		text, err := io.ReadAll(in)
		in.Close()
		if err != nil {
			return err
		}
		if path.Ext(f.Name) == ".html" {
			text = []byte(offline(string(text), f.Name, z))
		}
		if err := write(filepath.Join(dir, f.Name), string(text)); err != nil {
			return err
		}
	}
	reference, err := os.ReadFile("docs/api/index.html")
	if err != nil {
		return err
	}
	return write(filepath.Join(dir, "api/index.html"), string(reference))
}

// offline makes the addresses in the page name those of files.
func offline(text, name string, z *zip.ReadCloser) string {
	text = scripts.ReplaceAllString(text, "")
	text = strings.Replace(text, "</head>", "<style>#local-search, .VPSwitchAppearance, button.copy { display: none }</style></head>", 1)
	return absolute.ReplaceAllStringFunc(text, func(match string) string {
		parts := absolute.FindStringSubmatch(match)
		to := parts[2]
		if to == "" || strings.HasSuffix(to, "/") {
			to += "index.html"
		} else if f, err := z.Open(to + ".html"); err == nil {
			f.Close()
			to += ".html"
		}
		return parts[1] + relative(path.Dir(name), to)
	})
}
