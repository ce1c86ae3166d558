package docs

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/go-openapi/strfmt"

	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/test/harness"
)

// pages returns the written pages by their paths in the tree.
func pages(t *testing.T) map[string]string {
	t.Helper()
	root := harness.Root()
	found := map[string]string{}
	add := func(path string) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			t.Fatal(err)
		}
		found[name] = string(text)
	}
	for _, name := range []string{"README.md", "CHANGELOG.md", "CONTRIBUTING.md"} {
		add(filepath.Join(root, name))
	}
	err := filepath.WalkDir(filepath.Join(root, "docs"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && filepath.Ext(path) == ".md" {
			add(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.+)$`)
	fenced  = regexp.MustCompile("(?ms)^```.*?^```$")
	inCode  = regexp.MustCompile("`[^`\n]*`")
	noWord  = regexp.MustCompile(`[^\p{L}\p{N}_\- ]`)
)

// anchors returns what links into a page can name: its headings, spelled as GitHub does.
func anchors(page string) []string {
	var names []string
	for _, match := range heading.FindAllStringSubmatch(fenced.ReplaceAllString(page, ""), -1) {
		name := noWord.ReplaceAllString(strings.ToLower(match[1]), "")
		names = append(names, strings.ReplaceAll(name, " ", "-"))
	}
	return names
}

func TestLinks(t *testing.T) {
	t.Parallel()
	all := pages(t)
	for name, page := range all {
		prose := inCode.ReplaceAllString(fenced.ReplaceAllString(page, ""), "")
		for _, match := range link.FindAllStringSubmatch(prose, -1) {
			target, anchor, _ := strings.Cut(match[1], "#")
			if strings.Contains(target, "://") {
				continue
			}
			path := name
			if target != "" {
				path = filepath.Join(filepath.Dir(name), target)
			}
			if _, err := os.Stat(filepath.Join(harness.Root(), path)); err != nil {
				t.Errorf("%s: the link %s leads nowhere: %v", name, match[1], err)
				continue
			}
			if anchor != "" && !slices.Contains(anchors(all[path]), anchor) {
				t.Errorf("%s: the link %s names no heading of %s", name, match[1], path)
			}
		}
	}
}

// TestContents: every page can be reached from the table of contents, and every record from theirs.
func TestContents(t *testing.T) {
	t.Parallel()
	all := pages(t)
	for name := range all {
		index := "docs/index.md"
		if strings.HasPrefix(name, "docs/adr/") {
			index = "docs/adr/README.md"
		}
		if !strings.HasPrefix(name, "docs/") || name == index {
			continue
		}
		path, err := filepath.Rel(filepath.Dir(index), name)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(all[index], "("+path+")") {
			t.Errorf("%s does not link to %s", index, path)
		}
	}
}

// TestPictures: every picture is shown by a page, and has a title and nothing from elsewhere.
func TestPictures(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(filepath.Join(harness.Root(), "docs/pictures/*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d pictures: %v", len(files), err)
	}
	var written strings.Builder
	for _, page := range pages(t) {
		written.WriteString(page)
	}
	for _, path := range files {
		name := filepath.Base(path)
		if !strings.Contains(written.String(), "pictures/"+name+")") {
			t.Errorf("%s: no page shows it", name)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var picture struct {
			XMLName xml.Name `xml:"http://www.w3.org/2000/svg svg"`
			Title   string   `xml:"title"`
		}
		if err := xml.Unmarshal(text, &picture); err != nil || picture.Title == "" {
			t.Errorf("%s: the title is %q: %v", name, picture.Title, err)
		}
		if bytes.Contains(text, []byte("href")) || bytes.Contains(text, []byte("url(http")) {
			t.Errorf("%s: it is not whole by itself", name)
		}
	}
}

// TestJSON: what is marked as JSON is JSON, where nothing is left out.
func TestJSON(t *testing.T) {
	t.Parallel()
	for name, page := range pages(t) {
		for _, b := range blocks(page) {
			text := strings.Join(b.text, "\n")
			if b.language == "json" && !strings.Contains(text, wildcard) && !json.Valid([]byte(text)) {
				t.Errorf("%s:%d: not JSON", name, b.line)
			}
		}
	}
}

type validated interface {
	Validate(formats strfmt.Registry) error
}

// TestExamples: every example is a definition without a fault or an unknown field, and a page uses it.
func TestExamples(t *testing.T) {
	t.Parallel()
	classes := map[string]func() validated{
		"attach":    func() validated { return new(models.Attach) },
		"mount":     func() validated { return new(models.Mount) },
		"container": func() validated { return new(models.Container) },
	}
	files, err := filepath.Glob(filepath.Join(harness.Root(), "docs/examples/*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d examples: %v", len(files), err)
	}
	var written strings.Builder
	for _, page := range pages(t) {
		written.WriteString(page)
	}
	for _, path := range files {
		name := filepath.Base(path)
		class, _, _ := strings.Cut(strings.TrimSuffix(name, ".json"), "-")
		if class == "node" {
			continue // Kraken's: see TestNodeDefinitions
		}
		if classes[class] == nil {
			t.Errorf("%s: its name does not begin with attach, mount or container", name)
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := valid(text, classes[class]()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !strings.Contains(written.String(), "examples/"+name) {
			t.Errorf("%s: no page uses it", name)
		}
	}
}

func valid(text []byte, into validated) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	return into.Validate(strfmt.Default)
}
