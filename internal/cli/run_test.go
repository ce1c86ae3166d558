package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// answer makes a server that gives one answer to everything.
func answer(t *testing.T, code int, header, body string) (url string) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if name, value, ok := strings.Cut(header, ": "); ok {
			w.Header().Set(name, value)
		}
		w.WriteHeader(code)
		_, _ = io.WriteString(w, body)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// perform runs a command line without a terminal.
func perform(ctx context.Context, in string, args ...string) (status int, out, errors string) {
	var o, e bytes.Buffer
	status = Run(ctx, args, Streams{In: strings.NewReader(in), Out: &o, Err: &e}, "1.2.3")
	return status, o.String(), e.String()
}

func TestExitStatuses(t *testing.T) {
	t.Parallel()
	const faults = `{"code": 422, "type": "invalid", "message": "all of it", "errors": [{"path": "mount.bind.base", "message": "is \"a; mount b\"; use one of root, mount"}, {"path": "mount.bind.path", "message": "is required"}]}`
	for name, test := range map[string]struct {
		code         int
		header, body string
		args         string
		status       int
		out, errors  string
	}{
		"ok":      {200, "", `[]`, "list", 0, "No containers, mounts or attachments.\n", ""},
		"warning": {200, `Warning: 299 imageapi "ignored: \"a\\b\"", 299 imageapi "more"`, `[]`, "list containers -o json", 0, "[]\n", "imageapi: warning: ignored: \"a\\b\"\nimageapi: warning: more\n"},
		"refused": {409, "", `{"code": 409, "message": "busy\u001b[2J"}`, "list", 1, "", "imageapi: busy\\x1b[2J\n"},
		"force": {409, "", `{"code": 409, "message": "it runs: stop it first, or delete it with force=true"}`, "list", 1, "",
			"imageapi: it runs: stop it first, or delete it with force=true (imageapi remove --force)\n"},
		"not found": {404, "", `{"code": 404, "message": "no container"}`, "list", 3, "", "imageapi: no container\n"},
		"time":      {504, "", `{"code": 504, "message": "late"}`, "list", 5, "", "imageapi: late\n"},
		"faults": {422, "", faults, "list", 2, "", "imageapi: mount.bind.base: is \"a; mount b\"; use one of root, mount\n" +
			"imageapi: mount.bind.path: is required\n"},
		"no message":  {500, "", `{}`, "list", 1, "", "imageapi: the server returns 500 without a message\n"},
		"cut off":     {200, "", `[{"id": 1`, "list", 4, "", "imageapi: read the answer: unexpected EOF\n"},
		"other":       {502, "Content-Type: text/html", `<html>`, "list", 4, "", "imageapi: URL returns 502 Bad Gateway with the type \"text/html\"; it is not an imageapi-server\n"},
		"command":     {200, "", `[]`, "volumes", 2, "", "imageapi: unknown command \"volumes\"; see imageapi --help\n"},
		"none":        {200, "", `[]`, "", 2, "", "imageapi: no command given; see imageapi --help\n"},
		"argument":    {200, "", `[]`, "tree a b", 2, "", "imageapi: unexpected argument \"b\"; see imageapi tree --help\n"},
		"missing":     {200, "", `[]`, "stop nobody", 3, "", "imageapi: no container has the name \"nobody\"\n"},
		"two missing": {200, "", `[]`, "rm 1 nobody", 3, "", "imageapi: no object has the ID 1, and no container has this name\nimageapi: no container has the name \"nobody\"\n"},
		"exec":        {200, "", `[]`, "exec nobody true", 125, "", "imageapi: no container has the name \"nobody\"\n"},
		"no unit":     {200, "", `[]`, "wait app --timeout 1", 2, "", "imageapi: --timeout \"1\": use a number with a unit, such as 30s\n"},
		"number":      {200, "", `[]`, "logs app --tail all", 2, "", "imageapi: --tail \"all\": use a whole number\n"},
		"numbers":     {200, "", `[]`, "events --id app", 2, "", "imageapi: --id \"app\": use a whole number\n"},
		"file":        {200, "", `[]`, "create /nowhere", 2, "", "imageapi: read the definition: open /nowhere: no such file or directory\n"},
		"no state":    {200, "", `[]`, "wait 1 --state gone", 2, "", "imageapi: --state \"gone\": unknown value; use one of created, running, paused, stopping, exited, dead\n"},
		"no class":    {200, "", `[]`, "list volumes", 2, "", "imageapi: unknown class \"volumes\"; use containers, mounts or attachments\n"},
		"tls":         {200, "", `[]`, "list --ca /nowhere", 2, "", "imageapi: --cert, --key and --ca are for https, and --host is \"URL\"\n"},
		"typo":        {200, "", `[]`, "lsit", 2, "", "imageapi: unknown command \"lsit\"; did you mean \"list\"?\n"},
		"alias":       {200, "", `[]`, "inspec", 2, "", "imageapi: unknown command \"inspec\"; did you mean \"inspect\"?\n"},
		"option":      {200, "", `[]`, "list --lable a=b", 2, "", "imageapi: --lable: unknown option; did you mean \"--label\"?\n"},
		"letter":      {200, "", `[]`, "list -z", 2, "", "imageapi: -z: unknown option; see imageapi list --help\n"},
		"no value":    {200, "", `[]`, "list --state", 2, "", "imageapi: --state: needs a value; see imageapi list --help\n"},
		"bool":        {200, "", `[]`, "rm --force=2 a", 2, "", "imageapi: --force \"2\": use true or false\n"},
		"state":       {200, "", `[]`, "list --state runing", 2, "", "imageapi: --state \"runing\": unknown value; did you mean \"running\"?\n"},
		"kind":        {200, "", `[]`, "list --kind overlai", 2, "", "imageapi: --kind \"overlai\": unknown value; did you mean \"overlay\"?\n"},
		"class typo":  {200, "", `[]`, "list mount container", 0, "CONTAINER  NAME  STATE  AGE  MOUNT  COMMAND\n\nMOUNT  KIND  PHASE  AGE  REFS  MOUNTPOINT  OF\n", ""},
		"no argument": {200, "", `[]`, "rename app", 2, "", "imageapi: missing argument NEW; see imageapi rename --help\n"},
		"two outputs": {200, "", `[]`, "list -q -o json", 2, "", "imageapi: --quiet and --output: use one of them\n"},
		"no format":   {200, "", `[]`, "list -o jason", 2, "", "imageapi: --output \"jason\": unknown value; did you mean \"json\"?\n"},
		"version":     {200, "", `[]`, "--version", 0, "imageapi 1.2.3, commit unknown\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := answer(t, test.code, test.header, test.body)
			status, out, errors := perform(t.Context(), "", append([]string{"--host", url}, strings.Fields(test.args)...)...)
			errors = strings.ReplaceAll(errors, url, "URL")
			if status != test.status || out != test.out || errors != test.errors {
				t.Errorf("status %d, out %q, errors %q; want %d, %q, %q", status, out, errors, test.status, test.out, test.errors)
			}
		})
	}
}

// The help is the same however it is asked for.
func TestHelp(t *testing.T) {
	t.Parallel()
	for asked, same := range map[string]string{"help": "--help", "help exec": "exec --help"} {
		status, got, errors := perform(t.Context(), "", strings.Fields(asked)...)
		if _, want, _ := perform(t.Context(), "", strings.Fields(same)...); status != 0 || got != want || errors != "" {
			t.Errorf("%s: status %d, %s%s", asked, status, got, errors)
		}
	}
}

// A dry run shows the plan. A server without dry runs returns an error.
func TestDryRuns(t *testing.T) {
	t.Parallel()
	const plan = `{"steps": [
		{"act": "use", "path": "container.mount", "class": "mount", "kind": "bind", "id": 5, "does": "use mount 5 (bind)"},
		{"act": "start", "path": "container", "class": "container", "does": "start /bin/true", "unknown": ["whether it is there", "more"]}]}`
	const table = `
ACT    LEVEL            WHAT
use    container.mount  use mount 5 (bind)
start  container        start /bin/true
                        unknown: whether it is there
                        unknown: more
`
	for name, test := range map[string]struct {
		code         int
		body, args   string
		status       int
		out, mention string
	}{
		"run":     {200, plan, "run --dry-run -", 0, table[1:], ""},
		"create":  {200, plan, "create - --dry-run", 0, table[1:], ""},
		"refused": {409, `{"code": 409, "message": "busy"}`, "run --dry-run -", 1, "", "busy"},
		"unknown": {404, `{"code": 404, "message": "path /container/plan was not found"}`, "run --dry-run -", 3, "", "path /container/plan was not found"},
		"cut off": {200, `{"steps": [`, "run --dry-run -", 4, "", "read the answer"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := answer(t, test.code, "", test.body)
			status, out, errors := perform(t.Context(), `{"command": "/bin/true", "mount": {"id": 5}}`, append([]string{"--host", url}, strings.Fields(test.args)...)...)
			if status != test.status || out != test.out || !strings.Contains(errors, test.mention) || (errors == "") != (test.mention == "") {
				t.Errorf("status %d, out %q, errors %q; want %d, %q, %q", status, out, errors, test.status, test.out, test.mention)
			}
		})
	}
}

func TestHosts(t *testing.T) {
	t.Parallel()
	for host, want := range map[string]string{
		"foo": `--host "foo": use`, "unix://": `--host "unix://": use`, "unix://a/b": "use", "http://": "use", "ftp://a": "use",
		"http://a/b": "use", "http://u:p@a": "use", "http://a:1?x": "use", "://": "missing protocol scheme",
		"ssh://": "use", "ssh://-oProxyCommand=reboot/": "use", "ssh://-l@a": "use", "ssh://u:p@a": "use", "ssh://a?x": "use", "ssh://-v": "use",
	} {
		status, _, errors := perform(t.Context(), "", "list", "--host="+host)
		if status != exitUsage || !strings.Contains(errors, want) {
			t.Errorf("%q: status %d, %q", host, status, errors)
		}
	}
	for _, host := range []string{"unix:///nowhere", "http://127.0.0.1:1", "https://127.0.0.1:1", "http://127.0.0.1:1/"} {
		status, _, errors := perform(t.Context(), "", "list", "--host="+host)
		if status != exitUnreachable || !strings.Contains(errors, "connect to "+host+": connect: ") || !strings.Contains(errors, "is imageapi-server running?") {
			t.Errorf("%q: status %d, %q", host, status, errors)
		}
	}
}

// What can't be written is not lost without a word.
func TestOutputFails(t *testing.T) {
	t.Parallel()
	var errors bytes.Buffer
	status := Run(t.Context(), []string{"list", "--host", answer(t, 200, "", `[]`)}, Streams{Out: failing{}, Err: &errors}, "")
	if status != exitRefused || errors.String() != "imageapi: write the output: no space\n" {
		t.Errorf("status %d, %q", status, errors.String())
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, fmt.Errorf("no space") }

// A create that takes long shows on a terminal what it waits for, and nothing of that stays.
func TestProgress(t *testing.T) {
	t.Parallel()
	looked := make(chan struct{}, 16)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch {
		case r.Method == http.MethodPost:
			<-looked // it has looked once; what it saw it shows before it looks again or ends
			<-looked
			w.WriteHeader(http.StatusCreated)
			_, _ = io.WriteString(w, `{"id": 2, "kind": "bind", "phase": "ready"}`)
		case strings.HasSuffix(r.URL.Path, "/attach"):
			_, _ = io.WriteString(w, `[{"id": 1, "kind": "rbd", "phase": "pending", "waits_for": "an answer"}, {"id": 3, "kind": "local", "phase": "ready"}]`)
			looked <- struct{}{}
		default:
			_, _ = io.WriteString(w, `[]`)
		}
	}))
	defer s.Close()
	a, out, errors := testApp(0)
	a.errWidth, a.now, a.in = 80, time.Now, strings.NewReader(`{"kind": "bind"}`)
	if status := a.run(t.Context(), []string{"create", "-", "--host", s.URL}); status != 0 {
		t.Fatal(status, errors)
	}
	if out.String() != "mount 2 (bind) is ready\n" {
		t.Errorf("out %q", out)
	}
	got := errors.String()
	if !strings.HasPrefix(got, clearLine+"creating for 1s; pending: attach 1 (rbd) waits for an answer") || !strings.HasSuffix(got, clearLine) {
		t.Errorf("errors %q", got)
	}
}

// All commands show progress, but for those that show output as it comes, and those that need no server.
func TestProgressOfAllCommands(t *testing.T) {
	t.Parallel()
	without := strings.Fields("attach completion context demo-image events exec logs relay stats")
	for _, c := range Commands().Commands() {
		if (c.Annotations[slow] == "") != slices.Contains(without, c.Name()) {
			t.Errorf("%s: progress %q", c.Name(), c.Annotations[slow])
		}
	}
}

// Who interrupts a create is told what becomes of it.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		cancel()
		<-r.Context().Done()
	}))
	defer s.Close()
	status, out, errors := perform(ctx, "kind: bind", "create", "-", "--host", s.URL)
	if status != exitInterrupted || out != "" || !strings.Contains(errors, "interrupted: the server rolls back the request") {
		t.Errorf("status %d, out %q, errors %q", status, out, errors)
	}
}

func TestExecEnds(t *testing.T) {
	t.Parallel()
	for status, want := range map[string]string{
		`{"status":"Success"}`: "0 out err ",
		`{"status":"Failure","details":{"causes":[{"reason":"ExitCode","message":"7"}]}}`:                                        "7 out err ",
		`{"status":"Failure","details":{"causes":[{"reason":"Odd"},{"reason":"ExitCode","message":"137"},{"reason":"Signal"}]}}`: "137 out err ",
		`{"status":"Failure","message":"the daemon is shutting down","code":503}`:                                                "125 out err imageapi: the daemon is shutting down\n",
		`{`: "125 out err imageapi: read the status: unexpected EOF\n",
		"":  "125 out err imageapi: the connection is lost, and the end of the command unknown: ", // and how the kernel says it
	} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			switch {
			case strings.HasSuffix(r.URL.Path, "/container/exec"):
				if got := r.URL.Query()["args"]; !slices.Equal(got, []string{"ls", "-l", "--help"}) {
					t.Errorf("the arguments are %q", got)
				}
				conn, err := (&websocket.Upgrader{Subprotocols: []string{subprotocol}}).Upgrade(w, r, nil)
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				for _, message := range []string{"\x01out ", "\x02err ", "\x09odd", "\x03" + status} {
					if message != "\x03" {
						_ = conn.WriteMessage(websocket.BinaryMessage, []byte(message))
					}
				}
			case strings.HasSuffix(r.URL.Path, "/container"):
				_, _ = io.WriteString(w, `[{"id": 1, "name": "app", "command": "x", "mount": {"id": 2}}]`)
			default:
				_, _ = io.WriteString(w, `[]`)
			}
		}))
		status, out, errors := perform(t.Context(), "", "--host", s.URL, "exec", "app", "--", "ls", "-l", "--help")
		s.Close()
		if got := fmt.Sprintf("%d %s%s", status, out, errors); got != want && !(strings.HasSuffix(want, ": ") && strings.HasPrefix(got, want)) {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestShowsJSONAndYAML(t *testing.T) {
	t.Parallel()
	url := answer(t, 200, "", `[{"id": 1, "kind": "local", "phase": "ready", "refs": 1, "local": {"path": "/dev/<vdb>"}}]`)
	for format, want := range map[string]string{
		"json": "[\n  {\n    \"id\": 1,\n    \"kind\": \"local\",\n    \"local\": {\n      \"path\": \"/dev/<vdb>\"\n    },\n    \"phase\": \"ready\",\n    \"refs\": 1\n  }\n]\n",
		"yaml": "- id: 1\n  kind: local\n  local:\n    path: /dev/<vdb>\n  phase: ready\n  refs: 1\n",
	} {
		if _, out, _ := perform(t.Context(), "", "--host", url, "list", "attachments", "-o", format); out != want {
			t.Errorf("%s: %q, want %q", format, out, want)
		}
	}
}
