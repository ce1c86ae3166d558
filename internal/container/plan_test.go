package container_test

import (
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/container"
	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

func TestSuite(t *testing.T) {
	var current atomic.Pointer[failpoint.Hook]
	current.Store(new(failpoint.Hook))
	n := newNode(t, func(o *container.Options) {
		o.Failpoint = func(act string, perform func() error) error { return current.Load().Do(act, perform) }
	})
	drivertest.Run(t, drivertest.Case{
		New: func(g failpoint.Hook) driver.Driver {
			current.Store(&g)
			return n.Driver
		},
		Scope: testkit.Scope{Dirs: []string{n.runDir}, Cgroup: n.cgroup},
		Good:  `{"name": "web", "command": "/bin/true", "namespaces": ["uts", "uts"], "state": "running", "mount": {"id": 7}, ` + everything + `}`,
		Needs: []driver.Status{{Tree: &driver.Tree{Path: testkit.Busybox(t)}}},
		Wrong: []drivertest.Wrong{
			{Name: "unclosed quote", Def: `{"command": "sh -c 'x", "mount": {"id": 7}}`, Paths: []string{"command"}},
			{Name: "no word", Def: `{"command": " \t", "mount": {"id": 7}}`, Paths: []string{"command"}},
			{Name: "state", Def: `{"command": "true", "state": "exited", "mount": {"id": 7}}`, Paths: []string{"state"}},
			{Name: "all at once", Def: `{"command": "\"", "state": "paused"}`, Paths: []string{"command", "state", "mount"}},
		},
		Fails: []drivertest.Failing{
			{Name: "user namespace", Def: `{"command": "true", "namespaces": ["user"], "mount": {"id": 7}}`, Class: errs.Unsupported, Text: "user is not supported"},
		},
	})
}

func TestCommandWords(t *testing.T) {
	t.Parallel()
	for command, want := range map[string][]string{
		"true":                      {"true"},
		" a\tb\nc ":                 {"a", "b", "c"},
		`sh -c 'echo "$HOME" *'`:    {"sh", "-c", `echo "$HOME" *`},
		`a "b c" d\ e "f\"g" 'h\i'`: {"a", "b c", "d e", `f"g`, `h\i`},
		`a '' ""`:                   {"a", "", ""},
		"a $HOME `x` ~ {1,2} *.c":   {"a", "$HOME", "`x`", "~", "{1,2}", "*.c"},
		"größe 'ü ß'":               {"größe", "ü ß"},
		"":                          nil,
		"''":                        nil,
		"a 'b":                      nil,
		`a "b`:                      nil,
		`a \`:                       nil,
		"a\x00b":                    nil,
		strings.Repeat("x ", 65537): nil,
	} {
		words, faults := container.Words(command)
		if want == nil {
			if len(faults) != 1 || faults[0].Path != "command" || faults[0].Text == "" {
				t.Errorf("%.40q: faults %v, want one on command", command, faults)
			}
			continue
		}
		if len(faults) != 0 || !slices.Equal(words, want) {
			t.Errorf("%q: %q, %v; want %q", command, words, faults, want)
		}
	}
}

func FuzzCommandWords(f *testing.F) {
	for _, seed := range []string{"", "a b", "'", `"\`, "a 'b c' \"d\"", "\xff", "a\\\nb"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, command string) {
		words, faults := container.Words(command)
		if (len(faults) == 0) == (len(words) == 0) && len(faults) == 0 {
			t.Errorf("%q: neither words nor faults", command)
		}
		length := 0
		for _, w := range words {
			length += len(w)
			if strings.ContainsRune(w, 0) {
				t.Errorf("%q: a NUL in %q", command, w)
			}
		}
		if length > len(command) {
			t.Errorf("%q grew to %q", command, words)
		}
	})
}

func TestEffectiveNamespaces(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ list, want []models.ContainerNamespace }{
		{nil, []models.ContainerNamespace{mnt, pid, ipc, uts, "cgroup"}},
		{[]models.ContainerNamespace{}, []models.ContainerNamespace{mnt, pid, ipc, uts, "cgroup"}},
		{[]models.ContainerNamespace{mnt}, []models.ContainerNamespace{mnt}},
		{[]models.ContainerNamespace{uts, pid, uts}, []models.ContainerNamespace{mnt, pid, uts}},
		{[]models.ContainerNamespace{"user", "time", "cgroup", "net"}, []models.ContainerNamespace{mnt, "net", "cgroup", "time", "user"}},
	} {
		if got := container.Effective(c.list); !slices.Equal(got, c.want) {
			t.Errorf("%v: %v, want %v", c.list, got, c.want)
		}
	}
}
