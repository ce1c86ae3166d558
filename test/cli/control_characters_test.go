package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"unicode"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"
)

// hostile has an ESC, a DEL, a C1 control that terminals take for ESC [, a change of direction, a character of a plane above, and
// text that is harmless.
const hostile = "a\x1b[2Jb\x7fc\u009b2Jd\u202ee\U000e0041f ä€\n"

// TestControlCharacters gives a container hostile arguments, which it also writes. Nothing that the client shows of it holds a control
// character, but what it means is the same. To a pipe the log goes as it is.
func TestControlCharacters(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	args, err := json.Marshal([]string{"-n", hostile})
	if err != nil {
		t.Fatal(err)
	}
	definition := strings.Replace(s.definition("hostile", ""), "command: /bin/sh -c\nargs: [\"\"]", "command: /bin/echo\nargs: "+strings.ReplaceAll(string(args), "\U000e0041", `\U000e0041`), 1)
	definition = strings.NewReplacer("\x7f", `\x7f`, "\u009b", `\u009b`).Replace(definition)
	s.okFrom(t, definition, "run", "-")
	s.ok(t, "wait", "hostile")

	harmless := func(out string, args ...string) {
		t.Helper()
		if i := strings.IndexFunc(out, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }); i >= 0 || out == "" {
			t.Errorf("%q: %q has a control character at %d", args, out, i)
		}
	}
	for _, args := range [][]string{{"list"}, {"tree"}, {"show", "hostile"}, {"-o", "yaml", "list"}, {"-o", "json", "list"}} {
		harmless(s.ok(t, args...), args...)
	}
	var listed, shown struct {
		Containers []struct{ Args []string }
		Args       []string
	}
	for _, err := range []error{yaml.Unmarshal([]byte(s.ok(t, "-o", "yaml", "list")), &listed), json.Unmarshal([]byte(s.ok(t, "-o", "json", "show", "hostile")), &shown)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(listed.Containers) != 1 || listed.Containers[0].Args[1] != hostile || shown.Args[1] != hostile {
		t.Errorf("the arguments come back as %q and %q", listed.Containers, shown.Args)
	}

	const escaped = `a\x1b[2Jb\x7fc\u009b2Jd\u202ee\U000e0041f ä€`
	if got := s.ok(t, "logs", "hostile"); got != hostile {
		t.Errorf("to a pipe the log is %q", got)
	}
	if got := s.onTerminal(t, "logs", "hostile"); got != escaped+"\n" {
		t.Errorf("to a terminal the log is %q", got)
	}
	s.okFrom(t, s.definition("shell", forever), "run", "-")
	command := []string{"exec", "shell", "echo", "-n", hostile}
	if got := s.ok(t, command...); got != hostile {
		t.Errorf("to a pipe a command's output is %q", got)
	}
	if got := s.onTerminal(t, command...); got != escaped+"\n" {
		t.Errorf("to a terminal a command's output is %q", got)
	}
	harmless(s.raw(t, "/container"), "GET /container")
}

// onTerminal calls the client on a terminal and returns what that shows.
func (s *shell) onTerminal(t *testing.T, args ...string) string {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	slave := terminal(t, master)
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	cmd := s.command(ctx, args...)
	cmd.Stdout, cmd.Stderr = slave, slave
	shown := make(chan string)
	go func() {
		all, err := io.ReadAll(master)
		if err != nil && !errors.Is(err, unix.EIO) { // that is how a terminal ends that missing has open
			t.Error(err)
		}
		shown <- string(all)
	}()
	if err := cmd.Run(); err != nil {
		t.Errorf("%q: %v", args, err)
	}
	if err := slave.Close(); err != nil {
		t.Error(err)
	}
	return strings.ReplaceAll(<-shown, "\r\n", "\n")
}

// terminal opens the other end of a terminal.
func terminal(t *testing.T, master *os.File) *os.File {
	t.Helper()
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetUint32(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return slave
}

// raw returns the body of an answer.
func (s *shell) raw(t *testing.T, path string) string {
	t.Helper()
	a, err := s.Unix(t).Do(t.Context(), "GET", path, nil)
	if err != nil {
		t.Fatal(err)
	}
	return string(a.Body)
}
