package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The server is that of --host, --context, $IMAGEAPI_HOST, $IMAGEAPI_CONTEXT, the current context, or the default, in this order.
func TestContexts(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	for _, name := range []string{"XDG_CONFIG_HOME", "IMAGEAPI_HOST", "IMAGEAPI_CONTEXT"} {
		t.Setenv(name, "")
	}
	server := func(id string) string {
		return answer(t, 200, "", `[{"id": `+id+`, "kind": "local", "phase": "ready"}]`)
	}
	one, two, three := server("1"), server("2"), server("3")
	run := func(args string) string {
		status, out, errors := perform(t.Context(), "", strings.Fields(args)...)
		if status != 0 {
			return errors
		}
		return out
	}
	is := func(args, want string) {
		t.Helper()
		if got := run(args); got != want {
			t.Errorf("%s: %q, want %q", args, got, want)
		}
	}
	is("context", "CURRENT  NAME     HOST\n*        default  unix:///run/imageapi.sock\n")
	is("context add one --host "+one, "context one is "+one+"\n")
	is("context add two --host "+two, "context two is "+two+"\n")
	is("-c one ls attachments -q", "1\n")
	is("--context two ls attachments -q", "2\n")
	is("context use two", "")
	is("ls attachments -q", "2\n")
	is("context ls", "CURRENT  NAME     HOST\n         default  unix:///run/imageapi.sock\n         one      "+one+"\n*        two      "+two+"\n")
	is("context -o jsonpath=current", "two\n")
	is("ls attachments -q --host "+three, "3\n")
	t.Setenv("IMAGEAPI_CONTEXT", "one")
	is("ls attachments -q", "1\n")
	t.Setenv("IMAGEAPI_HOST", three)
	is("ls attachments -q", "3\n")
	is("-c two ls attachments -q", "2\n")
	is("-c ome ls", "imageapi: unknown context \"ome\"; did you mean \"one\"?\n")
	is("-c one --host "+two+" ls", "imageapi: --context and --host: use one of them\n")
	is("__complete -c o", "default\none\ntwo\n:4\n")
	t.Setenv("IMAGEAPI_HOST", "")
	t.Setenv("IMAGEAPI_CONTEXT", "")
	is("context remove two", "")
	is("context use tow", "imageapi: unknown context \"tow\"; see imageapi context\n")
	is("context add a/b --host "+one, "imageapi: \"a/b\" cannot be the name of a context\n")
	is("context add default --host "+one, "imageapi: \"default\" cannot be the name of a context\n")
	is("context add x", "imageapi: missing --host ADDRESS of the server\n")
	is("context ad x", "imageapi: unknown command \"ad\"; did you mean \"add\"?\n")
	path := filepath.Join(home, ".config/imageapi/config.yaml")
	if text, err := os.ReadFile(path); err != nil || string(text) != "contexts:\n    one:\n        host: "+one+"\n" {
		t.Errorf("%s, %v", text, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if status, _, errors := perform(t.Context(), "", "context", "add", "tls", "--host", "https://a", "--ca", "connect.go"); status != exitUsage || !strings.Contains(errors, "has no certificate") {
		t.Errorf("status %d, %s", status, errors)
	}
	if err := os.WriteFile(path, []byte("contexts: {one: {hots: x}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := run("ls"); !strings.Contains(got, "line 1: field hots not found") {
		t.Errorf("a broken file: %s", got)
	}
	if err := os.WriteFile(path, []byte("contexts: {one: {host: 'https://127.0.0.1:1', ca: /nowhere}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	is("-c one ls", "imageapi: --ca: open /nowhere: no such file or directory\n")
}
