package main

import (
	"archive/zip"
	"encoding/json"
	"strings"
	"testing"
)

// TestSiteIsCurrent: docs/site.zip was made of the pages of this tree.
func TestSiteIsCurrent(t *testing.T) {
	t.Chdir("../..")
	z, err := zip.OpenReader("docs/site.zip")
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	text, err := z.Open("manifest.json")
	if err != nil {
		t.Fatal(err)
	}
	defer text.Close()
	var m manifest
	if err := json.NewDecoder(text).Decode(&m); err != nil {
		t.Fatal(err)
	}
	is, err := sum(".")
	if err != nil {
		t.Fatal(err)
	}
	if m.Sources != is {
		t.Error("docs/site.zip was made of other pages: run make docs")
	}
}

func TestRelink(t *testing.T) {
	pages := map[string]string{"docs/mounts/nfs.md": "mounts/nfs.md", "docs/errors.md": "errors.md", "README.md": "readme.md"}
	files := map[string]string{"docs/examples/a.json": "public/examples/a.json", "docs/pictures/a.svg": "pictures/a.svg"}
	for given, want := range map[string]string{
		"[e](../errors.md#409)":            "[e](../errors.md#409)",
		"[r](../../README.md#walk)":        "[r](../readme.md#walk)",
		"[a](../examples/a.json)":          "[a](/imageapi/v1/docs/examples/a.json){target=_self}",
		"![p](../pictures/a.svg)":          "![p](../pictures/a.svg)",
		"[ref](../api/index.html)":         "[ref](/imageapi/v1/docs/api/){target=_self}",
		"[src](../../internal/cli/cli.go)": "src",
		"[two\nlines](../errors.md)":       "[two\nlines](../errors.md)",
		"[h](https://example.org/)":        "[h](https://example.org/)",
		"```\n[e](../../go.mod)\n```\n":    "```\n[e](../../go.mod)\n```\n",
	} {
		if got := relink(given, "docs/mounts/nfs.md", pages, files); got != want {
			t.Errorf("%q becomes %q, want %q", given, got, want)
		}
	}
}

func TestSidebar(t *testing.T) {
	index := "# All\n\nText with [a link](x.md).\n\n## Group\n\n- [One](one.md): about\n- Two: [a](a/b.md), [One](one.md#part)\n\n## Empty\n\nNothing.\n"
	bar := sidebar(index, map[string]string{"/one": "Page one", "/a/b": "Page b"})
	text, _ := json.Marshal(bar)
	if want := `[{"text":"Group","items":[{"text":"Page one","link":"/one"},{"text":"Page b","link":"/a/b"}]}]`; string(text) != want {
		t.Errorf("the sidebar is %s", text)
	}
}

func TestOffline(t *testing.T) {
	z := new(zip.ReadCloser)
	got := offline(`<script>x()</script><a href="/imageapi/v1/docs/">i</a><link rel="modulepreload" href="/imageapi/v1/docs/a.js">`, "mounts/nfs.html", z)
	if !strings.Contains(got, `href="../index.html"`) || strings.Contains(got, "script") || strings.Contains(got, "a.js") {
		t.Errorf("the page becomes %s", got)
	}
}
