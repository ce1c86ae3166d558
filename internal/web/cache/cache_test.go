package cache_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/web/cache"
)

func digestOf(p []byte) string {
	sum := sha256.Sum256(p)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func private(t *testing.T) string { return filepath.Join(t.TempDir(), "cache") }

func open(t *testing.T, dir string, size int64, boot string) *cache.Cache {
	t.Helper()
	c, err := cache.Open(cache.Options{Dir: dir, Size: size, Boot: boot, Keep: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// object is what a server has; it counts how often it is fetched.
type object struct {
	content []byte
	mu      sync.Mutex
	fetched int
	hold    chan struct{}
	err     error
}

func (o *object) fetch(_ context.Context, w *cache.Writer) error {
	o.mu.Lock()
	o.fetched++
	o.mu.Unlock()
	if o.hold != nil {
		<-o.hold
	}
	if _, err := w.Write(o.content); err != nil {
		return err
	}
	return o.err
}

func get(t *testing.T, c *cache.Cache, digest string, o *object) *cache.Object {
	t.Helper()
	found, err := c.Get(t.Context(), digest, o.fetch)
	if err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(found.Path); err != nil || !bytes.Equal(data, o.content) {
		t.Fatalf("%s has %d bytes, %v", found.Path, len(data), err)
	}
	return found
}

// left is what a cache that is closed has in its directory.
func left(t *testing.T, dir string) string {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".boot") && f.Name() != "lock" {
			names = append(names, f.Name())
		}
	}
	return strings.Join(names, " ")
}

func TestFetchedOnce(t *testing.T) {
	t.Parallel()
	c := open(t, private(t), 1<<20, "b")
	o := &object{content: bytes.Repeat([]byte("x"), 1000), hold: make(chan struct{})}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() { get(t, c, digestOf(o.content), o).Release() })
	}
	close(o.hold)
	all.Wait()
	if o.fetched != 1 {
		t.Errorf("fetched %d times", o.fetched)
	}
	if used, size := c.Space(); used != 1000 || size != 1<<20 {
		t.Errorf("%d of %d bytes", used, size)
	}
	// Without a digest it is fetched, and the content is kept once.
	if found := get(t, c, "", o); found.Digest != digestOf(o.content) || o.fetched != 2 {
		t.Errorf("%+v, fetched %d times", found, o.fetched)
	}
	if used, _ := c.Space(); used != 1000 {
		t.Errorf("%d bytes", used)
	}
}

func TestWrongDigestLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := private(t)
	c := open(t, dir, 1<<20, "b")
	for name, o := range map[string]*object{
		"another object": {content: []byte("y")}, "broken off": {content: []byte("x"), err: errors.New("no")},
	} {
		if _, err := c.Get(t.Context(), digestOf([]byte("x")), o.fetch); err == nil {
			t.Errorf("%s: no error", name)
		}
		if used, _ := c.Space(); used != 0 || left(t, dir) != "" {
			t.Errorf("%s: %d bytes, %q", name, used, left(t, dir))
		}
	}
	get(t, c, digestOf([]byte("x")), &object{content: []byte("x")}) // a failure is not kept
	if _, err := c.Get(t.Context(), "sha256:../../x", nil); !errs.Is(err, errs.Invalid) {
		t.Errorf("a path as a digest: %v", err)
	}
}

func TestEviction(t *testing.T) {
	t.Parallel()
	dir := private(t)
	c := open(t, dir, 2500, "b")
	one, two, three := &object{content: bytes.Repeat([]byte("1"), 1000)}, &object{content: bytes.Repeat([]byte("2"), 1000)}, &object{content: bytes.Repeat([]byte("3"), 1000)}
	first := get(t, c, digestOf(one.content), one)
	get(t, c, digestOf(two.content), two).Release()
	third := get(t, c, digestOf(three.content), three) // the second goes: the first is in use
	if strings.Contains(left(t, dir), digestOf(two.content)[7:]) {
		t.Error("the unused object still exists")
	}
	_, err := c.Get(t.Context(), digestOf(two.content), two.fetch)
	if !errs.Is(err, errs.OutOfSpace) || !strings.Contains(err.Error(), "--cache-size") {
		t.Errorf("a full cache: %v", err)
	}
	first.Release()
	first.Release() // twice is once
	get(t, c, digestOf(two.content), two)
	third.Release()
	if used, _ := c.Space(); used != 2000 {
		t.Errorf("%d bytes", used)
	}
}

// TestAfterABoot: entries are compared again after a boot, and one that was damaged is fetched again; what was not complete is gone.
func TestAfterABoot(t *testing.T) {
	t.Parallel()
	dir := private(t)
	o := &object{content: bytes.Repeat([]byte("x"), 1000)}
	c := open(t, dir, 1<<20, "first")
	path := get(t, c, digestOf(o.content), o).Path
	c.Close()
	if err := os.WriteFile(filepath.Join(dir, "part-123"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, boot := range []string{"first", "second"} {
		c = open(t, dir, 1<<20, boot)
		get(t, c, digestOf(o.content), o)
		c.Close()
	}
	if o.fetched != 1 || strings.Contains(left(t, dir), "part") {
		t.Errorf("fetched %d times, %q", o.fetched, left(t, dir))
	}
	if err := os.WriteFile(path, bytes.Repeat([]byte("y"), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	c = open(t, dir, 1<<20, "third")
	get(t, c, digestOf(o.content), o)
	if o.fetched != 2 {
		t.Errorf("a damaged entry was used: fetched %d times", o.fetched)
	}
}

func TestUnsafeDirectories(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	for name, make := range map[string]func(dir string) error{
		"a link": func(dir string) error {
			return errors.Join(os.Mkdir(dir+"x", 0o700), os.Symlink(dir+"x", dir))
		},
		"others may write": func(dir string) error { return errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o722)) },
		"a link as lock": func(dir string) error {
			return errors.Join(os.Mkdir(dir, 0o700), os.Symlink("/etc/passwd", filepath.Join(dir, "lock")))
		},
	} {
		dir := filepath.Join(base, strings.ReplaceAll(name, " ", "-"))
		if err := make(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := cache.Open(cache.Options{Dir: dir, Size: 1, Boot: "b"}); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	dir := private(t)
	open(t, dir, 1, "b")
	if _, err := cache.Open(cache.Options{Dir: dir, Size: 1, Boot: "b"}); !errs.Is(err, errs.Conflict) {
		t.Errorf("a second server: %v", err)
	}
}

// TestKeepsNothing: a cache that keeps nothing removes an object with its last use.
func TestKeepsNothing(t *testing.T) {
	t.Parallel()
	dir := private(t)
	c, err := cache.Open(cache.Options{Dir: dir, Size: 1 << 20, Boot: "b"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	o := &object{content: []byte("x")}
	one, two := get(t, c, digestOf(o.content), o), get(t, c, digestOf(o.content), o)
	one.Release()
	if c.Prune() {
		t.Error("a cache with an object in use is empty")
	}
	two.Release()
	if used, _ := c.Space(); used != 0 || left(t, dir) != "" || !c.Prune() {
		t.Errorf("%d bytes, %q", used, left(t, dir))
	}
}

// TestMade: an entry is found by what it was made of, also by a later process, until it is evicted or damaged.
func TestMade(t *testing.T) {
	t.Parallel()
	dir := private(t)
	c := open(t, dir, 1000, "one")
	made := &object{content: bytes.Repeat([]byte("m"), 600)}
	o := get(t, c, "", made)
	if err := c.Note(o, "key", []byte("a note")); err != nil {
		t.Fatal(err)
	}
	o.Release()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c = open(t, dir, 1000, "one")
	found, note, ok := c.Made(t.Context(), "key")
	if !ok || string(note) != "a note" || found.Digest != digestOf(made.content) {
		t.Fatalf("it is %+v, %q, %v", found, note, ok)
	}
	if _, _, ok := c.Made(t.Context(), "ey"); ok {
		t.Error("a part of a key finds it")
	}
	found.Release()
	get(t, c, "", &object{content: bytes.Repeat([]byte("n"), 600)}).Release() // takes its space
	if _, _, ok := c.Made(t.Context(), "key"); ok {
		t.Error("an evicted entry is found")
	}
	if files, _ := filepath.Glob(filepath.Join(dir, "*.from-*")); len(files) > 0 {
		t.Errorf("its note is left: %q", files)
	}
	o = get(t, c, "", made)
	if err := c.Note(o, "key", []byte("a note")); err != nil {
		t.Fatal(err)
	}
	o.Release()
	if err := os.WriteFile(o.Path, bytes.Repeat([]byte("x"), 600), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, ok := open(t, dir, 1000, "two").Made(t.Context(), "key"); ok {
		t.Error("a damaged entry is found after a boot")
	}
}
