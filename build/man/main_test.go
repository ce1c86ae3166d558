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
	all, err := pages()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if p.name == name {
			return string(p.text)
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

// Each command has a page with its own options and examples before anything else, and the page of the client lists it.
func TestCommandsHavePages(t *testing.T) {
	t.Parallel()
	client := manual(t, "imageapi")
	if has(t, client, helpOf(t)) < 8 {
		t.Error("the help of the client lists few options")
	}
	commands := 0
	for _, c := range cli.Commands().Commands() {
		if !c.IsAvailableCommand() {
			continue
		}
		commands++
		name := "imageapi-" + c.Name()
		if !strings.Contains(client, ".BR "+escaped(name)+" (1)") {
			t.Errorf("%s is not in the page of the client", name)
		}
		page := manual(t, name)
		own, rest, _ := strings.Cut(helpOf(t, c.Name()), "For the options of all commands")
		has(t, page, own)
		if _, examples, _ := strings.Cut(page, ".SH EXAMPLES\n"); rest == "" || !strings.Contains(examples, "imageapi "+escaped(c.Name())) {
			t.Errorf("%s: the page has no example:\n%s", name, page)
		}
		for _, global := range []string{`\-\-host`, `\-\-output`} {
			if strings.Contains(page, ".TP\n.B "+global) {
				t.Errorf("%s: the page lists the options of all commands", name)
			}
		}
	}
	if commands < 20 {
		t.Errorf("the client has %d commands", commands)
	}
}

func helpOf(t *testing.T, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	if status := cli.Run(t.Context(), append(args, "--help"), cli.Streams{In: nil, Out: &out, Err: &out}, ""); status != 0 {
		t.Fatalf("%q: status %d: %s", args, status, &out)
	}
	return out.String()
}

// man(1) formats the pages without warnings.
func TestPagesAreWellFormed(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "groff")
	all, err := pages()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		cmd := exec.Command("groff", "-man", "-ww", "-z")
		cmd.Stdin = bytes.NewReader(p.text)
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", p.name, err, out)
		}
	}
}
