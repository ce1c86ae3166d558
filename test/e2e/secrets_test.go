package e2e

import (
	"bufio"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/test/harness"
)

// canary is a secret that nobody may see again, and cephCanary one in the form of a Ceph key.
const canary = "canary-bird-1234"

var cephCanary = base64.StdEncoding.EncodeToString([]byte("\x01\x00" + strings.Repeat("\x00", 8) + "\x10\x00" + canary))

// A secret, given in the request or in a file, is nowhere after each way in which a create can fail, nor while it is under way: in no answer,
// log, file of the server, command line or environment, list of objects, page for monitoring.
func TestSecretsOfFailures(t *testing.T) {
	t.Parallel()
	n := newNode(t, "--log-level", "debug", "--create-timeout", "4s")
	dir := t.TempDir()
	file := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, []byte(text), mode))
		return path
	}
	chap, key := file("chap", canary+"\n", 0o600), file("key", cephCanary+"\n", 0o600)
	open := file("open", canary, 0o644)
	long := file("long", strings.Repeat(canary, 30), 0o600)
	const iscsi = `{"kind":"iscsi","iscsi":{"initiator":"iqn.2026-05.org.example:n","target":"iqn.2026-05.org.example:t","host":"%s","auth":{"username":"u",%s}}}`
	const rbd = `{"kind":"rbd","rbd":{"monitors":["%s"],"pool":"p","image":"i","options":{"name":"n",%s}}}`
	const here, nowhere = "127.0.0.1", "192.0.2.1"
	var bodies []string
	for _, host := range []string{here, nowhere, "no-such-host.invalid", "bad host"} {
		for _, secret := range []string{`"secret":"` + canary + `"`, `"secret_file":"` + chap + `"`, `"secret_file":"` + open + `"`, `"secret_file":"` + long + `"`,
			`"secret":"` + canary + `","target_username":"t","target_secret":"` + canary + `"`,
			`"secret":"` + canary + `","target_username":"t","target_secret_file":"` + chap + `"`,
			`"secret":"` + canary + `","secret_file":"` + chap + `"`, `"secret_file":"` + canary + `"`, `"secret":["` + canary + `"]`} {
			bodies = append(bodies, fmt.Sprintf(iscsi, host, secret))
		}
		for _, secret := range []string{`"secret":"` + cephCanary + `"`, `"secret_file":"` + key + `"`, `"secret_file":"` + chap + `"`, `"secret":"` + canary + `"`,
			`"secret":"` + cephCanary + `","share":true,"noshare":true`, `"secret":"` + cephCanary + `","secret_file":"` + key + `"`,
			`"secret":"` + cephCanary + `","queue_depth":"` + canary + `"`} {
			bodies = append(bodies, fmt.Sprintf(rbd, host, secret))
		}
	}
	for _, body := range bodies[:len(bodies):len(bodies)] {
		bodies = append(bodies, body[:len(body)-2]) // cut off
	}
	var answers strings.Builder
	var told strings.Builder
	stream, err := n.Stream(t.Context(), "/events", nil)
	must(t, err)
	listening := make(chan struct{})
	go func() {
		defer close(listening)
		_, _ = io.Copy(&told, stream.Body)
	}()
	pending := make(chan struct{})
	go func() {
		defer close(pending)
		for _, body := range bodies {
			a, err := n.Do(t.Context(), http.MethodPost, "/attach", body)
			if err != nil || a.Status < 400 {
				t.Errorf("status %d, %v: %s", a.Status, err, a.Body)
			}
			fmt.Fprintf(&answers, "%s\n%v\n", a.Body, a.Header)
		}
	}()
	places := map[string]string{}
	for !over(pending) {
		collect(t, n, places)
	}
	collect(t, n, places)
	must(t, stream.Body.Close())
	<-listening
	places["answers"], places["log"], places["events"] = answers.String(), n.Log(), told.String()
	for where, text := range places {
		if strings.Contains(text, canary) || strings.Contains(text, cephCanary) || strings.Contains(text, strings.TrimRight(cephCanary, "=")) {
			t.Errorf("%s gives the secret away", where)
		}
	}
	if !strings.Contains(places["answers"], "others than root may use it") || !strings.Contains(places["events"], `"iscsi"`) || places[n.RunDir+"/journal.db"] == "" {
		t.Errorf("the test did not get where it should: %s", places["answers"])
	}
}

// collect adds what can be read: the files of the server but those where secrets are kept, its pages, the command line and environment of
// each process of ours.
func collect(t *testing.T, n *node, places map[string]string) {
	t.Helper()
	_ = filepath.WalkDir(n.RunDir, func(path string, _ os.DirEntry, _ error) error {
		if text, err := os.ReadFile(path); err == nil {
			places[path] = string(text)
		}
		return nil
	})
	for _, page := range []string{"/imageapi/v1/attach", "/metrics", "/healthz", "/readyz", "/debug/pprof/cmdline", "/debug/pprof/heap?debug=1", "/debug/vars"} {
		answer, err := n.Page(t.Context(), page, nil)
		must(t, err)
		text, err := io.ReadAll(answer.Body)
		must(t, err)
		answer.Body.Close()
		places[page] += string(text)
	}
	for _, name := range []string{"cmdline", "environ"} {
		files, err := filepath.Glob("/proc/[0-9]*/" + name)
		must(t, err)
		for _, file := range files {
			text, err := os.ReadFile(file)
			// This process, and what it starts elsewhere, may well have it.
			if command, _ := os.ReadFile(filepath.Dir(file) + "/comm"); err == nil && strings.HasPrefix(string(command), "imageapi") {
				places[name+" of "+string(command)] += string(text)
			}
		}
	}
}

// However the server ends, it leaves no core: what is in its memory are secrets too.
func TestServerLeavesNoCore(t *testing.T) {
	t.Parallel()
	testkit.Root(t)
	if !dumps(t, `echo msg=listening; exec sleep 1000`) {
		t.Skip("nothing leaves a core on this machine")
	}
	run := testkit.RunDir(t)
	if dumps(t, `exec "$0" "$@" 2>&1`, harness.Server(t), "--scheme", "unix", "--socket-path", filepath.Join(run, "api.sock"), "--run-dir", run) {
		t.Error("the server has left its memory in a core")
	}
	must(t, unix.Unmount(filepath.Join(run, "mounts"), unix.UMOUNT_NOFOLLOW))
}

// dumps starts a script, aborts it when it says that it is listening, and tells whether that has left a core.
func dumps(t *testing.T, script string, args ...string) bool {
	t.Helper()
	cmd := exec.Command("/bin/sh", append([]string{"-c", "ulimit -c unlimited; " + script}, args...)...)
	cmd.Dir = t.TempDir()                               // where the core would be
	cmd.Env = append(os.Environ(), "GOTRACEBACK=crash") // Go's way to have one
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.Contains(lines.Text(), "msg=listening") {
	}
	must(t, cmd.Process.Signal(syscall.SIGABRT))
	_, err = io.Copy(io.Discard, out)
	must(t, err)
	exit, ok := errors.AsType[*exec.ExitError](cmd.Wait())
	if !ok || !exit.Sys().(syscall.WaitStatus).Signaled() {
		t.Fatalf("%s is not aborted: %v", script, exit)
	}
	return exit.Sys().(syscall.WaitStatus).CoreDump()
}

// A secret that is in a file is read when it is needed, and the answer names the file.
func TestISCSISecretFile(t *testing.T) {
	target := newTarget(t, 1)
	n := newNode(t)
	dir := t.TempDir()
	ours, theirs := filepath.Join(dir, "ours"), filepath.Join(dir, "theirs")
	must(t, os.WriteFile(ours, []byte(chapSecret+"\n"), 0o600))
	must(t, os.WriteFile(theirs, []byte(targetSecret), 0o400))
	def := iscsiNode{n, target}.lun(0, func(a *models.AttachIscsi) {
		a.Auth.Secret, a.Auth.SecretFile = nil, ours
		a.Auth.TargetSecret, a.Auth.TargetSecretFile = nil, theirs
	})
	var made models.Attach
	answer := n.Must(t, http.StatusCreated, http.MethodPost, "/attach", def, &made)
	if made.Iscsi.Auth.SecretFile != ours || made.Iscsi.Auth.TargetSecretFile != theirs || strings.Contains(string(answer.Body), "canary-") {
		t.Errorf("the answer is %s", answer.Body)
	}
	n.remove(t, http.StatusOK, "/attach", made.ID)
	n.Must(t, http.StatusCreated, http.MethodPost, "/attach", answer.Body, &made) // as it was answered
	n.remove(t, http.StatusOK, "/attach", made.ID)
}
