// Command man writes the manual pages into a directory: the options of the programs, and then the sections that are written by hand.
package main

import (
	"bytes"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

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

// page is a manual page.
type page struct {
	name, section string
	text          []byte
}

func pages() ([]page, error) {
	server, err := serverPage()
	return append(clientPages(), server), err
}

func write(dir string) error {
	all, err := pages()
	if err != nil {
		return err
	}
	for _, p := range all {
		if err := os.WriteFile(filepath.Join(dir, p.name+"."+p.section), p.text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

var (
	title = regexp.MustCompile(`^\.TH (\S+) 1 `)
	flag  = regexp.MustCompile(`\\-\\-[a-z0-9-]+`)
)

// serverPage returns the page of the server. go-flags puts it into section 1, and writes the hyphens in names as those of words, which
// readers cannot type.
func serverPage() (page, error) {
	var out bytes.Buffer
	if err := daemon.Manual(&out); err != nil {
		return page{}, fmt.Errorf("write the page of the server: %w", err)
	}
	text := title.ReplaceAll(out.Bytes(), []byte(".TH $1 8 "))
	text = flag.ReplaceAllFunc(text, func(name []byte) []byte {
		return append([]byte(`\-\-`), bytes.ReplaceAll(name[len(`\-\-`):], []byte("-"), []byte(`\-`))...)
	})
	return page{name: "imageapi-server", section: "8", text: append(text, serverSections...)}, nil
}
