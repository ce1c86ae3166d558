package crash

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/test/define"
)

// lab is a run directory with a daemon, which is replaced whenever it dies, and a container that no crash may touch.
type lab struct {
	*testing.T
	*server
	runDir  string
	cgroup  string
	images  string // a directory for what the objects stand on
	empty   *testkit.State
	quiet   *testkit.State // with the bystander
	watched object         // the bystander
	base    objects        // it and what it stands on
	lines   int            // of its log that were there at the last look
	highest int64          // the highest id that was ever seen
	tally   tally
	env     []string // of its daemons
	links   []string // the connections that there were
}

// tally is what a test prints.
type tally struct {
	hits  int
	acts  map[string]int // hits by point
	leaks int
}

func (y *tally) hit(point string) {
	y.hits++
	y.acts[point]++
}

func (y *tally) String() string {
	return fmt.Sprintf("%d hits of %d different points, %d leaks", y.hits, len(y.acts), y.leaks)
}

func newLab(t *testing.T) *lab {
	t.Helper()
	testkit.Root(t)
	testkit.Need(t, "squashfs", "overlay", "mksquashfs", "busybox")
	dir := testkit.RunDir(t)
	l := &lab{T: t, runDir: filepath.Join(dir, "run"), images: filepath.Join(dir, "images"), cgroup: "/" + filepath.Base(dir)}
	l.tally.acts = map[string]int{}
	check(t, os.Mkdir(l.images, 0o755))
	check(t, os.Mkdir(l.runDir, 0o700))
	testkit.Run(t, "cp", testkit.BusyboxImage(t), l.image())
	scope := testkit.Scope{Dirs: []string{dir}, Ignore: []string{"journal.db", "journal.db.ids", "lock", "images", "logs"}, Cgroup: l.cgroup}
	l.empty, l.links = testkit.Snapshot(t, scope), connections()
	l.restart(rest, 0)
	t.Cleanup(func() {
		l.clear(nil)
		l.stop(t)
		l.unchanged(l.empty)
	})
	l.watch()
	scope.Ignore = scope.Ignore[:len(scope.Ignore)-1]
	l.quiet = testkit.Snapshot(t, scope)
	return l
}

// within has a subtest fail for the lab until the returned function is called.
func (l *lab) within(t *testing.T) (back func()) {
	outer := l.T
	l.T = t
	return func() { l.T = outer }
}

// image is a SquashFS with busybox.
func (l *lab) image() string { return filepath.Join(l.images, "image") }

// restart starts a daemon in the place of one that has ended, and tells whether it came up.
func (l *lab) restart(mode string, target int) bool {
	l.Helper()
	l.server = start(l, l.runDir, l.cgroup, mode, target, l.env...)
	return !l.over()
}

// must sends a request that has to succeed.
func (l *lab) must(method, path string, body any) object {
	l.Helper()
	want := http.StatusOK
	if method == http.MethodPost {
		want = http.StatusCreated
	}
	o := object{}
	l.Must(l, want, method, path, body, &o)
	o.Path, _, _ = strings.Cut(path, "?")
	l.highest = max(l.highest, o.ID)
	return o
}

// settled returns all objects when nothing is under way any more.
func (l *lab) settled() objects {
	l.Helper()
	var all objects
	var err error
	if !testkit.Settles(func() bool { all, err = l.all(); return err != nil || all.calm() }) {
		l.Errorf("it does not settle: %v", all)
	}
	if err != nil {
		l.kill() // or it has died; its log tells more
		l.Fatalf("%v; the daemon's log:\n%s", err, l.said())
	}
	for id := range all {
		l.highest = max(l.highest, id)
	}
	return all
}

// unchanged proves that nothing is left, with the bystander or without it.
func (l *lab) unchanged(since *testkit.State) bool {
	l.Helper()
	var diff string
	if testkit.Settles(func() bool { diff = lasting(since.Diff()); return diff == "" }) {
		return true
	}
	l.tally.leaks++
	l.Errorf("something is left:\n%s", diff)
	return false
}

// disconnected proves that nothing more is left on a server's side of the kernel than there was at first.
func (l *lab) disconnected() {
	l.Helper()
	if !testkit.Settles(func() bool { return len(connections()) <= len(l.links) }) {
		l.tally.leaks++
		l.Errorf("connections are left: there were %q, there are %q", l.links, connections())
	}
}

// lasting leaves out the daemon itself and what the bystander starts between its lines, which are others now.
func lasting(diff string) string {
	var out strings.Builder
	for line := range strings.Lines(diff) {
		process := strings.Contains(line, " processes: ")
		if !process || !strings.Contains(line, " "+comm()+" ") && !strings.Contains(line, " sleep ") && !strings.Contains(line, " sh ") {
			out.WriteString(line)
		}
	}
	return out.String()
}

// clear deletes all that was not there before, what needs others first.
func (l *lab) clear(before objects) {
	l.Helper()
	for range 3 {
		left := l.settled().since(before)
		for _, id := range slices.Backward(slices.Sorted(maps.Keys(left))) {
			_, _ = l.Do(context.Background(), http.MethodDelete, fmt.Sprintf("%s?id=%d&force=true", left[id].Path, id), nil)
		}
	}
	if left := l.settled().since(before); len(left) > 0 {
		l.Errorf("cannot be deleted: %v", left)
	}
}

// watch starts the bystander, which counts in its log.
func (l *lab) watch() {
	l.Helper()
	l.watched = l.must(http.MethodPost, "/container", def{
		"name": "bystander", "state": "running", "mount": define.Squash(l.image()),
		"command": `/bin/sh -c 'i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done'`,
	})
	l.base = l.settled()
	l.watched = l.base[l.watched.ID]
}

// bystander proves that the bystander has noticed nothing: it is the same process and no line of its log is missing.
func (l *lab) bystander(all objects) {
	l.Helper()
	if diff := all[l.watched.ID].like(l.watched); diff != "" {
		l.Errorf("the bystander: %s", diff)
	}
	before := l.lines
	testkit.Eventually(l, "the bystander goes on", func() bool {
		data, err := os.ReadFile(l.watched.Logfile)
		check(l, err)
		whole := strings.Split(string(data), "\n")
		l.lines = len(whole) - 1
		for i, line := range whole[:l.lines] {
			if line != strconv.Itoa(i) {
				l.Fatalf("line %d of the bystander's log is %q", i, line)
			}
		}
		return l.lines > before
	})
}
