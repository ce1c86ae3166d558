package main

import (
	"encoding/json"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
)

// The bill has each module that is in the program, and is the same each time.
func TestBill(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var first, second strings.Builder
	for _, out := range []*strings.Builder{&first, &second} {
		if err := write(out, self, "v1.2.3"); err != nil {
			t.Fatal(err)
		}
	}
	if first.String() != second.String() {
		t.Error("two bills of one program differ")
	}
	var b bill
	if err := json.Unmarshal([]byte(first.String()), &b); err != nil {
		t.Fatal(err)
	}
	if m := b.Metadata.Component; m.Version != "v1.2.3" || len(m.Hashes) != 1 || len(m.Hashes[0].Content) != 64 {
		t.Errorf("the program is %+v", m)
	}
	has := func(name string) bool {
		return slices.ContainsFunc(b.Components, func(c component) bool {
			return c.Name == name && c.Version != "" && strings.HasPrefix(c.PURL, "pkg:golang/"+name+"@")
		})
	}
	info, _ := debug.ReadBuildInfo()
	for _, name := range append([]string{"std"}, names(info.Deps)...) {
		if !has(name) {
			t.Errorf("%s is missing in %s", name, first.String())
		}
	}
}

func names(all []*debug.Module) (paths []string) {
	for _, m := range all {
		paths = append(paths, m.Path)
	}
	return paths
}

func TestLibrary(t *testing.T) {
	t.Parallel()
	got := library(&debug.Module{Path: "a", Version: "v1", Replace: &debug.Module{Path: "b", Version: "v2", Sum: "h1:x"}})
	if got.PURL != "pkg:golang/b@v2" || got.Properties[0].Value != "h1:x" {
		t.Errorf("a replaced module is %+v", got)
	}
}
