package main

import (
	"bytes"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/cli"
	"github.com/kraken-hpc/imageapi/internal/daemon"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

var shown = regexp.MustCompile(`--([a-z0-9-]+)`)

func manual(t *testing.T, name string) string {
	t.Helper()
	for _, p := range pages() {
		if p.name == name {
			text, err := p.text()
			if err != nil {
				t.Fatal(err)
			}
			return string(text)
		}
	}
	t.Fatalf("no page of %s", name)
	return ""
}

// has looks for each flag of a help text in a page.
func has(t *testing.T, page, help string) (flags int) {
	t.Helper()
	for _, match := range shown.FindAllStringSubmatch(help, -1) {
		flags++
		if name := `\-\-` + strings.ReplaceAll(match[1], "-", `\-`); match[1] != "help" && !strings.Contains(page, name) {
			t.Errorf("--%s is not in the page", match[1])
		}
	}
	return flags
}

func TestServerFlagsAreInThePage(t *testing.T) {
	t.Parallel()
	page := manual(t, "imageapi-server")
	_, _, err := daemon.Parse([]string{"--help"})
	if flags := has(t, page, err.Error()); flags < 40 {
		t.Errorf("the help names %d flags", flags)
	}
	if !strings.HasPrefix(page, ".TH imageapi-server 8 ") {
		t.Errorf("the page begins with %.40q", page)
	}
}

func TestCommandsAndTheirFlagsAreInThePage(t *testing.T) {
	t.Parallel()
	page := manual(t, "imageapi")
	help := func(args ...string) string {
		var out bytes.Buffer
		if status := cli.Run(t.Context(), append(args, "--help"), cli.Streams{In: nil, Out: &out, Err: &out}, ""); status != 0 {
			t.Fatalf("%q: status %d: %s", args, status, &out)
		}
		return out.String()
	}
	top := help()
	_, list, ok := strings.Cut(top, "Available commands:\n")
	if !ok {
		t.Fatalf("the help lists no commands:\n%s", top)
	}
	commands := 0
	for line := range strings.Lines(list) {
		command, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		if command == "" {
			continue
		}
		commands++
		if !strings.Contains(page, ".SS "+command+"\n") {
			t.Errorf("%s is not in the page", command)
		}
		has(t, page, help(command))
	}
	if commands < 10 {
		t.Errorf("the help names %d commands", commands)
	}
}

// What man(1) shows of a page has nothing to complain about.
func TestPagesAreWellFormed(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "groff")
	for _, p := range pages() {
		cmd := exec.Command("groff", "-man", "-ww", "-z")
		cmd.Stdin = strings.NewReader(manual(t, p.name))
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", p.name, err, out)
		}
	}
}
