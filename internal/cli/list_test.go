package cli

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// nodeServer is a server with the objects of nodeState. It filters by state, kind and label as the real one, and knows no more.
func nodeServer(t *testing.T) string {
	t.Helper()
	w := load(t)
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "application/json")
		var list []any
		q := r.URL.Query()
		for _, o := range w.objects() {
			if !strings.HasSuffix(r.URL.Path, "/"+o.class) || q.Get("state") != "" && q.Get("state") != o.run || q.Get("kind") != "" && q.Get("kind") != o.kind {
				continue
			}
			if key, value, _ := strings.Cut(q.Get("label"), "="); key != "" && o.labels[key] != value {
				continue
			}
			list = append(list, o.model)
		}
		a, out, _ := testApp(0)
		if len(list) == 0 {
			_, _ = io.WriteString(rw, "[]")
		} else if err := a.json(list); err != nil {
			t.Error(err)
		}
		_, _ = out.WriteTo(rw)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// Each option changes what a list prints.
func TestListOptions(t *testing.T) {
	t.Parallel()
	url := nodeServer(t)
	for args, want := range map[string]string{
		"list -q":                                      "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n11\n",
		"list -o name":                                 "1\n2\n3\napp\n5\n6\nevil\ndone\n9\n10\n11\n",
		"ps -q":                                        "4\n6\n7\n8\n",
		"ls mounts -q":                                 "2\n3\n5\n9\n10\n",
		"list --kind overlay -q":                       "3\n5\n",
		"list --kind rbd -q":                           "11\n",
		"list --state running -q":                      "4\n6\n",
		"list --state dead --kind nfs -q":              "7\n9\n",
		"list --phase broken -q":                       "9\n",
		"ps --label job=1 -o name":                     "app\n",
		"list --filter mount.id=5 -q":                  "6\n7\n8\n",
		"ps --filter mount.id!=5 -q":                   "4\n",
		"list --filter mount.id=5 --filter signal=9":   "evil",
		"ps --sort name -q":                            "6\n4\n8\n7\n",
		"ps --sort -name -q":                           "7\n8\n4\n6\n",
		"mounts --sort id":                             `unknown command "mounts"`,
		"list mounts --sort -id -q":                    "10\n9\n5\n3\n2\n",
		"ps -o jsonpath={[*].name}":                    "app evil done\n",
		"show app -o jsonpath=mount.id":                "3\n",
		"show app 1 -o jsonpath=.id":                   "4\n1\n",
		"show app -o go-template={{.name}}/{{.state}}": "app/running\n",
		"show app -o jsonpath={.x":                     "--output",
		"show app -o go-template={{.x":                 "--output",
		"show app -o go-template={{index.name.x}}":     "--output go-template: ",
		"list --filter state":                          "use FIELD=VALUE",
		"list --filter stat=x":                         `--filter "stat=x": unknown field; did you mean "state"?`,
		"list --sort nam":                              `--sort "nam": unknown field; did you mean "name"?`,
		"tree -q":                                      "4\n6\n7\n8\n11\n",
		"tree --up -q 2":                               "2\n",
		"show app -o name":                             "app\n",
		"show app -q":                                  "4\n",
	} {
		status, out, errors := perform(t.Context(), "", append([]string{"--host", url}, strings.Fields(args)...)...)
		if !strings.HasSuffix(want, "\n") {
			if !strings.Contains(out+errors, want) {
				t.Errorf("%s: status %d, %q, %q; want %q", args, status, out, errors, want)
			}
		} else if status != 0 || out != want || errors != "" {
			t.Errorf("%s: status %d, %q, %q; want %q", args, status, out, errors, want)
		}
	}
}

// --output wide adds columns, and cuts no line on a terminal.
func TestWide(t *testing.T) {
	t.Parallel()
	for format, want := range map[string]string{
		"table": "CONTAINER  NAME  STATE    AGE  MOUNT  C…\n4          app   running  42s  3      /…\n",
		"wide": "CONTAINER  NAME  STATE    AGE  MOUNT  COMMAND                        PID  RESTARTS  LABELS\n" +
			"4          app   running  42s  3      /bin/sh -c 'echo hello' \"a b\"  77   -         job=1,user=eve\n",
	} {
		a, out, errors := testApp(40)
		if status := a.run(t.Context(), []string{"ps", "--label", "job=1", "-o", format, "--host", nodeServer(t)}); status != 0 || out.String() != want {
			t.Errorf("%s: status %d, %s%s", format, status, out, errors)
		}
	}
}

// An alias is another name of the same command.
func TestAliases(t *testing.T) {
	t.Parallel()
	url := nodeServer(t)
	for alias, command := range map[string]string{"ls": "list", "ps": "list containers", "inspect app": "show app", "rm nobody": "remove nobody"} {
		status, out, errors := perform(t.Context(), "", append([]string{"--host", url}, strings.Fields(alias)...)...)
		wantStatus, want, wantErrors := perform(t.Context(), "", append([]string{"--host", url}, strings.Fields(command)...)...)
		if status != wantStatus || out != want || errors != wantErrors {
			t.Errorf("%s: status %d, %s%s", alias, status, out, errors)
		}
	}
}

func TestVersionOfBoth(t *testing.T) {
	t.Parallel()
	url := answer(t, 200, "", `{"version": "4.5.6"}`)
	if status, out, errors := perform(t.Context(), "", "version", "--host", url); status != 0 || out != "imageapi 1.2.3, commit unknown\nimageapi-server 4.5.6 at "+url+"\n" || errors != "" {
		t.Errorf("status %d, %s%s", status, out, errors)
	}
}
