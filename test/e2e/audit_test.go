package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
	"golang.org/x/sys/unix"
)

// audited returns the records in an audit log.
func audited(t testing.TB, path string) (records []map[string]any) {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	for line := range bytes.Lines(data) {
		var record map[string]any
		if err := json.Unmarshal(line, &record); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		records = append(records, record)
	}
	return records
}

// Each change leaves one record: who, what, how it ended, and the request. Reads leave none, and no record holds what is secret.
func TestAuditLogHasOneRecordForEachChange(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.log")
	n := newNode(t, "--audit-log", path)
	c := n.create(t, &models.Container{
		Name: "audited", Command: to("/bin/sleep 1000"), Mount: n.root(), State: models.ContainerStateRunning, Env: []string{"TOKEN=hush-env"},
	})
	n.Must(t, http.StatusOK, http.MethodGet, "/container?name=audited", nil, nil)
	n.Must(t, http.StatusOK, http.MethodPost, "/container/exec?name=audited", &models.ContainerCommand{Args: []string{"/bin/true", "hush-arg"}}, nil)
	n.Must(t, http.StatusUnprocessableEntity, http.MethodPost, "/container", &models.Container{
		Name: "faulty", Mount: mountID(99999), Args: []string{"/bin/true", "hush-arg"}, Env: []string{"A=hush-env"},
	}, nil)
	n.Must(t, http.StatusBadRequest, http.MethodDelete, "/mount?id=99999&password=hush-query", nil, nil)
	n.remove(t, http.StatusOK, "/container", c.ID, "&force=true")
	type line struct{ operation, outcome, kind string }
	want := []line{
		{"create_container", "done", ""}, {"exec_in_container", "done", ""}, {"create_container", "failed", "invalid"}, {"delete_mount", "failed", "*"},
		{"delete_container", "done", ""},
	}
	records := audited(t, path)
	if len(records) != len(want) {
		t.Fatalf("%d records, want %d: %v", len(records), len(want), records)
	}
	requests := map[any]bool{}
	for i, r := range records {
		kind, _ := r["type"].(string)
		if got := (line{r["operation"].(string), r["outcome"].(string), kind}); got != want[i] && (want[i].kind != "*" || got.kind == "") {
			t.Errorf("record %d is %v, want %v", i, r, want[i])
		}
		client, _ := r["client"].(map[string]any)
		if client["uid"] != float64(0) || client["pid"] == nil {
			t.Errorf("record %d does not contain the client: %v", i, r)
		}
		requests[r["request"]] = true
	}
	if len(requests) != len(want) || records[0]["name"] != "audited" || records[0]["object"] != records[4]["object"] || !strings.HasPrefix(records[0]["object"].(string), "container ") {
		t.Errorf("the records do not say what was changed: %v", records)
	}
	if data, _ := os.ReadFile(path); bytes.Contains(data, []byte("hush")) {
		t.Errorf("the audit log contains secrets:\n%s", data)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v, want the mode 0600", info, err)
	}
}

// smallDisk returns a directory whose file system has a few blocks, and a function that fills it.
func smallDisk(t *testing.T) (dir string, fill func() (free func())) {
	t.Helper()
	dir = t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"))
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir, func() func() {
		ballast := filepath.Join(dir, "ballast")
		f, err := os.Create(ballast)
		must(t, err)
		defer f.Close()
		for block := make([]byte, 4096); err == nil; {
			_, err = f.Write(block)
		}
		return func() { must(t, os.Remove(ballast)) }
	}
}

// A change that cannot be recorded is not made; reads still work, and so do changes as soon as the sink has space.
func TestFullAuditLogRefusesChanges(t *testing.T) {
	t.Parallel()
	testkit.Root(t)
	dir, fill := smallDisk(t)
	path := filepath.Join(dir, "audit.log")
	n := newNode(t, "--audit-log", path)
	root := n.mount(t, squash(n.image))
	free := fill()
	refused := 0
	for range 200 { // what is reserved for the next record may last for a few
		answer, err := n.Do(t.Context(), http.MethodDelete, "/container?id=99999", nil)
		must(t, err)
		if refused = answer.Status; refused == http.StatusInsufficientStorage {
			break
		}
	}
	if refused != http.StatusInsufficientStorage {
		t.Fatalf("a change with a full audit log: %d", refused)
	}
	before := audited(t, path)
	answer := n.Must(t, http.StatusInsufficientStorage, http.MethodDelete, fmt.Sprintf("/mount?id=%d", root.ID), nil, nil)
	if !strings.Contains(answer.Message(), "audit") {
		t.Errorf("the error does not name the audit log: %s", answer.Message())
	}
	n.Must(t, http.StatusOK, http.MethodGet, fmt.Sprintf("/mount?id=%d", root.ID), nil, nil)
	if got := scrape(t, n)["imageapi_refused_requests_total{cause=audit}"]; got < 2 {
		t.Errorf("%v refused requests are counted", got)
	}
	free()
	n.remove(t, http.StatusOK, "/mount", root.ID)
	if after := audited(t, path); len(after) != len(before)+1 {
		t.Errorf("%d records after one more change, %d before", len(after), len(before))
	}
}

// With --audit-full=count changes are made without a record, and counted.
func TestFullAuditLogCounts(t *testing.T) {
	t.Parallel()
	testkit.Root(t)
	dir, fill := smallDisk(t)
	n := newNode(t, "--audit-log", filepath.Join(dir, "audit.log"), "--audit-full", "count")
	free := fill()
	defer free()
	for range 200 {
		n.Must(t, http.StatusNotFound, http.MethodDelete, "/container?id=99999", nil, nil)
		if scrape(t, n)["imageapi_audit_records_lost_total{}"] > 0 {
			return
		}
	}
	t.Error("no lost record is counted")
}

// The file rotates by itself, and goes on in a new file when logrotate has moved it away.
func TestAuditLogRotates(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.log")
	n := newNode(t, "--audit-log", path, "--audit-size", "4KiB", "--audit-files", "3")
	for range 60 {
		n.Must(t, http.StatusNotFound, http.MethodDelete, "/container?id=99999", nil, nil)
	}
	for suffix, there := range map[string]bool{"": true, ".1": true, ".2": true, ".3": false} {
		info, err := os.Stat(path + suffix)
		if (err == nil) != there {
			t.Errorf("%s%s: %v", path, suffix, err)
		}
		if err == nil && info.Size() > 5<<10 {
			t.Errorf("%s%s has %d bytes", path, suffix, info.Size())
		}
	}
	must(t, os.Rename(path, path+".moved"))
	n.Must(t, http.StatusNotFound, http.MethodDelete, "/container?id=99999", nil, nil)
	if got := len(audited(t, path)); got != 1 {
		t.Errorf("%d records in the new file", got)
	}
}

// An upgrade is a change: it is recorded when it begins, since it can last for days, and when it ends.
func TestUpgradeIsAudited(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.log")
	n := newNode(t, "--audit-log", path)
	resp, err := n.Stream(context.WithoutCancel(t.Context()), "/container/exec?id=99999&args=hush-args&env=hush-env", http.Header{
		"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"AAAAAAAAAAAAAAAAAAAAAA=="},
		"Sec-Websocket-Protocol": {"v5.channel.k8s.io"},
	})
	must(t, err)
	must(t, resp.Body.Close())
	records := audited(t, path)
	if len(records) != 2 || records[0]["msg"] != "begin" || records[1]["msg"] != "change" || records[0]["request"] != records[1]["request"] {
		t.Errorf("the records of an upgrade: %v", records)
	}
	if data, _ := os.ReadFile(path); bytes.Contains(data, []byte("hush")) {
		t.Errorf("the audit log contains secrets:\n%s", data)
	}
}

// The records of a command with streams name its container and contain nothing of what it runs.
func TestExecStreamIsAudited(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.log")
	n := newNode(t, "--audit-log", path)
	c := n.create(t, start(forever, n.root()))
	s := n.opens(t, streamPath(c.ID, "echo hush-script", ""))
	s.ends(t)
	testkit.Eventually(t, "the record of the end", func() bool { return len(audited(t, path)) == 3 })
	begin, end := audited(t, path)[1], audited(t, path)[2]
	if begin["msg"] != "begin" || begin["operation"] != "exec" || end["msg"] != "change" || end["operation"] != "exec" {
		t.Errorf("the records are %v and %v", begin, end)
	}
	if end["outcome"] != "done" || end["status"] != float64(http.StatusSwitchingProtocols) || end["object"] != fmt.Sprintf("container %d", c.ID) {
		t.Errorf("the record of the end is %v", end)
	}
	if data, _ := os.ReadFile(path); bytes.Contains(data, []byte("hush")) {
		t.Errorf("the audit log contains the command:\n%s", data)
	}
	if got := scrape(t, n); got["imageapi_long_request_duration_seconds{operation=exec}"] != 1 {
		t.Errorf("the stream is not counted as a long request: %v", got)
	}
}
