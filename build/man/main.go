// Command man writes the manual pages into a directory: what the programs say about their flags, and then the sections that are
// written by hand.
package main

import (
	"bytes"
	_ "embed"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"

	"github.com/kraken-hpc/imageapi/internal/cli"
	"github.com/kraken-hpc/imageapi/internal/daemon"
)

//go:embed imageapi-server.roff
var serverSections []byte

//go:embed imageapi.roff
var clientSections []byte

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: man DIRECTORY")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintf(os.Stderr, "man: %v\n", err)
		os.Exit(1)
	}
}

// page is a manual page: its section, who writes the part about flags, and the rest of it.
type page struct {
	name, section string
	flags         func(io.Writer) error
	sections      []byte
}

func pages() []page {
	return []page{
		{"imageapi-server", "8", daemon.Manual, serverSections},
		{"imageapi", "1", cli.Manual, clientSections},
	}
}

func write(dir string) error {
	for _, p := range pages() {
		text, err := p.text()
		if err != nil {
			return fmt.Errorf("write the page of %s: %w", p.name, err)
		}
		if err := os.WriteFile(filepath.Join(dir, p.name+"."+p.section), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

var (
	title = regexp.MustCompile(`^\.TH (\S+) 1 `)
	flag  = regexp.MustCompile(`\\-\\-[a-z0-9-]+`)
)

// text returns a page. go-flags puts it into section 1, and writes the hyphens in names as those of words, which nobody can type.
func (p page) text() ([]byte, error) {
	var out bytes.Buffer
	if err := p.flags(&out); err != nil {
		return nil, err
	}
	text := title.ReplaceAll(out.Bytes(), []byte(".TH $1 "+p.section+" "))
	text = flag.ReplaceAllFunc(text, func(name []byte) []byte {
		return append([]byte(`\-\-`), bytes.ReplaceAll(name[len(`\-\-`):], []byte("-"), []byte(`\-`))...)
	})
	return append(text, p.sections...), nil
}
