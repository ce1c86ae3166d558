package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
)

// base is where the server has the site, as in config.mjs.
const base = "/imageapi/v1/docs/"

// Pages that stand outside docs, and their places on the site.
var outside = map[string]string{
	"README.md":       "readme.md",
	"CONTRIBUTING.md": "contributing.md",
	"CHANGELOG.md":    "changelog.md",
}

// internals are pages whose words would hide the guides from a search.
var internals = regexp.MustCompile(`^(adr/.*|changelog|contributing|dependencies|architecture|drivers)\.md$`)

// stage copies the pages of the tree at root to dir.
func stage(root, dir string) error {
	pages, files, err := sources(root)
	if err != nil {
		return err
	}
	for from, to := range pages {
		text, err := os.ReadFile(filepath.Join(root, from))
		if err != nil {
			return err
		}
		page := relink(string(text), from, pages, files)
		if internals.MatchString(to) {
			page = "---\nsearch: false\n---\n" + page
		}
		if err := write(filepath.Join(dir, to), page); err != nil {
			return err
		}
	}
	for from, to := range files {
		text, err := os.ReadFile(filepath.Join(root, from))
		if err != nil {
			return err
		}
		if err := write(filepath.Join(dir, to), string(text)); err != nil {
			return err
		}
	}
	index, err := os.ReadFile(filepath.Join(root, "docs/index.md"))
	if err != nil {
		return err
	}
	bar, err := json.MarshalIndent(sidebar(relink(string(index), "docs/index.md", pages, files), titles(dir, pages)), "", "  ")
	if err != nil {
		return err
	}
	return write(filepath.Join(dir, ".vitepress/sidebar.json"), string(bar))
}

// sources returns what the site shows, by path in the tree, with its place on the site: pages, and files that it serves as they are.
func sources(root string) (pages, files map[string]string, err error) {
	pages, files = map[string]string{}, map[string]string{"swagger.yaml": "public/swagger.yaml"}
	for from, to := range outside {
		pages[from] = to
	}
	err = fs.WalkDir(os.DirFS(root), "docs", func(name string, entry fs.DirEntry, err error) error {
		rest := strings.TrimPrefix(name, "docs/")
		switch {
		case err != nil || entry.IsDir() && name != "docs/api":
			return err
		case entry.IsDir():
			return fs.SkipDir // the reference is embedded on its own
		case path.Ext(name) == ".md":
			pages[name] = strings.Replace(rest, "README.md", "index.md", 1)
		case path.Ext(name) == ".svg":
			files[name] = rest
		case strings.HasPrefix(rest, "examples/"):
			files[name] = "public/" + rest
		}
		return nil
	})
	return pages, files, err
}

var link = regexp.MustCompile(`(!?)\[([^\]]*)\]\(([^)\s#]*)(#[^)\s]*)?\)`)

// relink makes the links of the page from hold on the site. What the site does not show becomes plain text.
func relink(text, from string, pages, files map[string]string) string {
	var out, prose strings.Builder
	flush := func() {
		out.WriteString(link.ReplaceAllStringFunc(prose.String(), func(match string) string { // a link's text can have a line break
			parts := link.FindStringSubmatch(match)
			return newLink(parts[1], parts[2], parts[3], parts[4], from, pages, files)
		}))
		prose.Reset()
	}
	code := false
	for line := range strings.Lines(text) {
		fence := strings.HasPrefix(strings.TrimSpace(line), "```")
		if fence {
			flush()
			code = !code
		}
		if fence || code {
			out.WriteString(line)
		} else {
			prose.WriteString(line)
		}
	}
	flush()
	return out.String()
}

func newLink(picture, text, target, anchor, from string, pages, files map[string]string) string {
	if target == "" || strings.Contains(target, ":") {
		return fmt.Sprintf("%s[%s](%s%s)", picture, text, target, anchor)
	}
	name := path.Join(path.Dir(from), target)
	here := path.Dir(pages[from])
	switch to, isFile := files[name]; {
	case pages[name] != "":
		return fmt.Sprintf("[%s](%s%s)", text, relative(here, pages[name]), anchor)
	case isFile && picture != "":
		return fmt.Sprintf("![%s](%s)", text, relative(here, to))
	case isFile:
		return fmt.Sprintf("[%s](%s%s){target=_self}", text, base, strings.TrimPrefix(to, "public/"))
	case name == "docs/api/index.html":
		return fmt.Sprintf("[%s](%sapi/){target=_self}", text, base)
	}
	return text
}

func relative(from, to string) string {
	rel, err := filepath.Rel(from, to)
	if err != nil {
		return to
	}
	if !strings.HasPrefix(rel, ".") {
		rel = "./" + rel
	}
	return rel
}

// item is one of VitePress's sidebar.
type item struct {
	Text  string `json:"text"`
	Link  string `json:"link,omitempty"`
	Items []item `json:"items,omitempty"`
}

var heading = regexp.MustCompile(`(?m)^# (.*)$`)

// titles returns the headings of the pages, by the links to them.
func titles(dir string, pages map[string]string) map[string]string {
	all := map[string]string{}
	for _, to := range pages {
		text, _ := os.ReadFile(filepath.Join(dir, to))
		if match := heading.FindSubmatch(text); match != nil {
			all[address(to)] = strings.ReplaceAll(string(match[1]), "`", "")
		}
	}
	return all
}

// address is where the site shows a page.
func address(page string) string {
	return "/" + strings.TrimSuffix(strings.TrimSuffix(strings.TrimPrefix(page, "./"), ".md"), "index")
}

// sidebar makes a group of each section of the index that lists pages.
func sidebar(index string, titles map[string]string) []item {
	var groups []item
	seen := map[string]bool{}
	for line := range strings.Lines(index) {
		if title, ok := strings.CutPrefix(line, "## "); ok {
			groups = append(groups, item{Text: strings.TrimSpace(title)})
			continue
		}
		if len(groups) == 0 || !strings.HasPrefix(line, "- ") && !strings.HasPrefix(line, "  ") {
			continue
		}
		group := &groups[len(groups)-1]
		for _, match := range link.FindAllStringSubmatch(line, -1) {
			target, anchor := match[3], match[4]
			if !strings.HasSuffix(target, ".md") {
				continue
			}
			if seen[target] {
				continue // a further section of a page
			}
			seen[target] = true
			text := titles[address(target)]
			if anchor != "" {
				text = strings.ToUpper(match[2][:1]) + match[2][1:]
			}
			group.Items = append(group.Items, item{Text: text, Link: address(target)})
		}
	}
	kept := groups[:0]
	for _, g := range groups {
		if len(g.Items) > 0 {
			kept = append(kept, g)
		}
	}
	return kept
}

func write(name, text string) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(name, []byte(cmp.Or(text, "\n")), 0o644)
}
