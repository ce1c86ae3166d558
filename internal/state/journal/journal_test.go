package journal

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRecordsComeBack(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal")
	j, found, err := Open(path, "boot-1", quiet)
	if err != nil || found.NextID != 1 || found.Aside != "" {
		t.Fatalf("a new journal: %+v, %v", found, err)
	}
	kept := Record{ID: 2, Class: "mount", Kind: "bind", Unit: json.RawMessage(`{"path":"/x"}`), Needs: []int64{1}, Held: true, Phase: "ready"}
	must(t, j.Write(4, entry(t, Record{ID: 1, Class: "attach", Unit: json.RawMessage(`{}`), Needs: []int64{}, Phase: "pending"}), entry(t, kept)))
	must(t, j.Write(5, Gone(1)))
	must(t, j.Close())

	j, found, err = Open(path, "boot-1", quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if diff := cmp.Diff(Found{NextID: 5, Records: []Record{kept}}, found); diff != "" {
		t.Errorf("the journal came back otherwise (-want +got):\n%s", diff)
	}
}

func TestForeignOrDamagedJournalIsSetAside(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		damage   func(t *testing.T, path string)
		boot     string
		wantNext int64
		wantWhy  string
	}{
		"another boot": {func(*testing.T, string) {}, "boot-2", 7, "another boot"},
		"not a journal": {func(t *testing.T, path string) {
			must(t, os.WriteFile(path, []byte(strings.Repeat("no database\n", 2000)), 0o600))
		}, "boot-1", 7 + step, "not a journal"},
		"cut short": {func(t *testing.T, path string) { must(t, os.Truncate(path, headerSize+20)) }, "boot-1", 7, "cut short"},
		"zeroed tail": {func(t *testing.T, path string) {
			must(t, os.Truncate(path, headerSize+20))
			must(t, os.Truncate(path, 32768))
		}, "boot-1", 7, "checksum"},
		"no header": {func(t *testing.T, path string) { must(t, os.Truncate(path, 100)) }, "boot-1", 7 + step, "checksum"},
		"an earlier format": {func(t *testing.T, path string) {
			must(t, os.WriteFile(path, []byte(strings.Repeat("imageapi-journal 1 \n", 100)), 0o600))
		}, "boot-1", 7 + step, "another version"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "journal")
			j, _, err := Open(path, "boot-1", quiet)
			must(t, err)
			must(t, j.Write(7, entry(t, Record{ID: 6, Unit: json.RawMessage(`{}`)})))
			must(t, j.Close())
			c.damage(t, path)

			j, found, err := Open(path, c.boot, quiet)
			if err != nil {
				t.Fatal(err)
			}
			defer j.Close()
			if found.Aside != path+".old" || found.NextID != c.wantNext || len(found.Records) != 0 || !strings.Contains(found.Why, c.wantWhy) {
				t.Errorf("found %+v", found)
			}
			if _, err := os.Stat(found.Aside); err != nil {
				t.Error(err)
			}
			must(t, j.Write(found.NextID+1, entry(t, Record{ID: found.NextID, Unit: json.RawMessage(`{}`)})))
		})
	}
}

func TestSecondDaemonIsRefused(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal")
	j, _, err := Open(path, "boot-1", quiet)
	must(t, err)
	defer j.Close()
	if _, _, err := Open(path, "boot-1", quiet); err == nil || !strings.Contains(err.Error(), "another process holds it") {
		t.Errorf("the second open said: %v", err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
