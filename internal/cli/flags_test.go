package cli

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// usual are arguments with which each command reaches the server, or does what it does without one.
var usual = map[string]string{
	"apply": "DIR/app.json", "create": "DIR/app.json", "context add": "x", "context remove": "default", "context use": "default", "demo-image": "DIR/IMAGE",
	"events": "", "exec": "app true", "export": "app", "replace": "app DIR/app.json", "rename": "app other", "run": "DIR/app.json", "update": "app --label x=y",
	"logs": "app", "kill": "app", "pause": "app", "remove": "app", "restart": "app", "resume": "app", "rollback": "app", "show": "app",
	"start": "done", "stop": "app", "wait": "app", "imageapi": "ps",
}

// given are the options of a command as a user gives them; those of all commands are under imageapi.
var given = map[string]string{
	"create --name": "n", "create --dry-run": "", "run --name": "n", "run --dry-run": "", "run --systemd": "", "run --command": "/bin/x", "demo-image --image-version": "2",
	"events --after": "r-1", "events --id": "4", "events --kind": "overlay", "events --name": "app",
	"exec --env": "A=b", "exec --timeout": "1ms", "exec --tty": "", "exec --user": "7", "exec --workdir": "/tmp",
	"list --filter": "id=4", "list --kind": "nfs", "list --label": "job=1", "list --phase": "broken", "list --sort": "-id", "list --state": "dead",
	"logs --follow": "", "logs --since": "1s", "logs --tail": "1", "logs --timestamps": "", "remove --force": "",
	"replace --dry-run": "", "replace --keep-old": "5s", "replace --on-failure": "stop", "replace --probe": "true", "replace --ready-within": "5s",
	"stats --interval": "1ms", "stop --no-wait": "", "stop --timeout": "1s", "tree --up": "",
	"update --label": "a=b", "update --max-restarts": "1", "update --resource": "pids=1", "update --restart": "always", "update --stop-timeout": "1",
	"wait --ready": "", "wait --state": "running", "wait --timeout": "9s",
	"imageapi --ca": "/nowhere", "imageapi --cert": "/nowhere", "imageapi --key": "/nowhere", "imageapi --context": "none", "imageapi --host": "unix:///nowhere",
	"imageapi --output": "json", "imageapi --quiet": "", "imageapi --help": "", "imageapi --version": "",
}

// elsewhere are options whose effect needs a terminal or time, with their tests in test/cli.
var elsewhere = map[string]string{"attach --detach-keys": "TestAttach", "exec --interactive": "TestExecTerminal", "stats --follow": "TestStatsFollow"}

// Each option changes the requests or the output of a command, compared with the same command without it.
func TestEachOptionHasAnEffect(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	dir := t.TempDir()
	app := `{"name": "web", "command": "x", "mount": {"id": 3}}`
	if err := os.WriteFile(filepath.Join(dir, "app.json"), []byte(app), 0o600); err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	try := func(command string, f *pflag.Flag) {
		option := command + " --" + f.Name
		used[option] = true
		value, ok := given[option]
		if !ok {
			if elsewhere[option] == "" {
				t.Errorf("%s has no test", option)
			}
			return
		}
		args := strings.TrimSpace(strings.TrimPrefix(command, "imageapi") + " " + usual[command])
		if command == "run" && (f.Name == "systemd" || f.Name == "command") {
			args = "run file:///x"
		}
		extra := []string{"--" + f.Name}
		if f.Value.Type() != "bool" {
			extra[0] += "=" + value
		}
		without, with := transcript(t, dir, strings.Fields(args)), transcript(t, dir, append(extra, strings.Fields(args)...))
		if command != "imageapi" {
			with = transcript(t, dir, slices.Insert(strings.Fields(args), len(strings.Fields(command)), extra...))
		}
		if with == without {
			t.Errorf("%s has no effect on %s:\n%s", option, args, with)
		}
	}
	var each func(*cobra.Command, string)
	each = func(c *cobra.Command, name string) {
		c.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) { try(name, f) })
		for _, sub := range c.Commands() {
			each(sub, strings.TrimSpace(strings.TrimPrefix(name, "imageapi")+" "+sub.Name()))
		}
	}
	root := Commands()
	root.PersistentFlags().VisitAll(func(f *pflag.Flag) { try("imageapi", f) })
	each(root, "imageapi")
	for option := range given {
		if !used[option] {
			t.Errorf("%s is no option", option)
		}
	}
	for _, test := range elsewhere {
		if !isTest(t, test) {
			t.Errorf("there is no %s", test)
		}
	}
}

func isTest(t *testing.T, name string) bool {
	files, err := filepath.Glob("../../test/cli/*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(files, func(file string) bool {
		text, err := os.ReadFile(file)
		return err == nil && strings.Contains(string(text), "func "+name+"(")
	})
}

// transcript returns what a command sends to a server and prints.
func transcript(t *testing.T, dir string, args []string) string {
	t.Helper()
	var sent strings.Builder
	var lock sync.Mutex
	w := load(t)
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		lock.Lock()
		fmt.Fprintf(&sent, "%s %s %s %s\n", r.Method, r.URL, r.Header.Get("Last-Event-ID"), body)
		lock.Unlock()
		rw.Header().Set("Content-Type", "application/json")
		switch path := r.URL.Path; {
		case r.Method == http.MethodPatch && strings.HasSuffix(path, "/container"):
			_, _ = io.WriteString(rw, `{"id": 4, "name": "app", "command": "x", "mount": {"id": 3}, "state": "stopping", "phase": "stopping"}`)
		case r.Method != http.MethodGet || strings.HasSuffix(path, "/wait"):
			rw.WriteHeader(http.StatusConflict) // the request is all that counts
			_, _ = io.WriteString(rw, `{"code": 409, "message": "busy"}`)
		case strings.HasSuffix(path, "/events") || strings.HasSuffix(path, "/exec") || strings.HasSuffix(path, "/log"):
			rw.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(rw, `{"code": 404, "message": "none"}`)
		default:
			a, out, _ := testApp(0)
			list := []any{}
			for _, o := range w.objects() {
				if strings.HasSuffix(path, "/"+o.class) {
					list = append(list, o.model)
				}
			}
			if err := a.json(list); err != nil {
				t.Error(err)
			}
			_, _ = out.WriteTo(rw)
		}
	}))
	defer s.Close()
	image := filepath.Join(t.TempDir(), "image")
	for i, arg := range args {
		args[i] = strings.NewReplacer("DIR/IMAGE", image, "DIR", dir).Replace(arg)
	}
	t.Setenv("IMAGEAPI_HOST", s.URL)
	status, out, errors := perform(t.Context(), "", args...)
	if slices.Contains(args, image) {
		made, _ := os.ReadFile(image)
		out += string(made)
	}
	return strings.NewReplacer(s.URL, "URL", image, "IMAGE").Replace(fmt.Sprintf("%sstatus %d\n%s%s", &sent, status, out, errors))
}
