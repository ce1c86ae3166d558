package container

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/go-openapi/swag/conv"
	"github.com/kballard/go-shellquote"
	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

const (
	maxString = 128<<10 - 1       // of an argument or a variable: MAX_ARG_STRLEN, execve(2), without its NUL
	maxPath   = unix.PathMax - 1  // likewise
	maxID     = uint64(1<<32 - 2) // of a user or group; the next one means "no change" (setresuid(2))
)

func (u *unit) checkWords(faults *errs.Faults) {
	u.Def.Command = new(conv.Value(u.Def.Command))
	split(*u.Def.Command, faults)
}

func (u *unit) runWords(config *wire.Config) { config.Args = split(*u.Def.Command, new(errs.Faults)) }

// split makes words of a command as a POSIX shell does with quotes and backslashes; nothing is expanded.
func split(command string, faults *errs.Faults) []string {
	switch {
	case len(command) > wire.MaxCommand:
		faults.Add("command", "is %d bytes long, more than %d", len(command), wire.MaxCommand)
		return nil
	case strings.ContainsRune(command, 0):
		faults.Add("command", "has a NUL character, which no program can be given")
		return nil
	}
	words, err := shellquote.Split(command)
	switch {
	case errors.Is(err, shellquote.UnterminatedSingleQuoteError):
		faults.Add("command", "a single quote (') is not closed")
	case errors.Is(err, shellquote.UnterminatedDoubleQuoteError):
		faults.Add("command", "a double quote (\") is not closed")
	case errors.Is(err, shellquote.UnterminatedEscapeError):
		faults.Add("command", "ends in a backslash with nothing after it")
	case err != nil:
		faults.Add("command", "%v", err)
	case len(words) == 0 || words[0] == "":
		faults.Add("command", "names no program")
	}
	return words
}

func checkArgs(args []string, faults *errs.Faults) {
	for i, arg := range args {
		checkString(fmt.Sprintf("args[%d]", i), arg, faults)
	}
}

// checkString reports whether a text can become an argument or a variable.
func checkString(path, s string, faults *errs.Faults) bool {
	switch {
	case strings.ContainsRune(s, 0):
		faults.Add(path, "has a NUL character, which no program can be given")
	case len(s) > maxString:
		faults.Add(path, "is %d bytes long, more than %d", len(s), maxString)
	default:
		return true
	}
	return false
}

func checkEnv(env []string, faults *errs.Faults) {
	seen := map[string]int{}
	for i, entry := range env {
		path := fmt.Sprintf("env[%d]", i)
		name, _, ok := strings.Cut(entry, "=")
		first, twice := seen[name]
		switch {
		case !checkString(path, entry, faults):
		case !ok:
			faults.Add(path, "%q is not of the form NAME=value", entry)
		case name == "":
			faults.Add(path, "%q has no name before the =", entry)
		case twice:
			faults.Add(path, "sets %s, as env[%d] does: which one counts is up to each program, so give it once", name, first)
		default:
			seen[name] = i
		}
	}
}

// runEnv begins with what a command finds in its environment by default: nothing of the daemon's. TERM is what the kernel gives an init; a dumb
// terminal has no colours and no cursor, which would be no good in the log of systemd. With a user the init stage finds HOME.
func (u *unit) runEnv(config *wire.Config) {
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "TERM=linux", "container=imageapi"}
	if *u.Def.Systemd {
		env[2] = "TERM=dumb"
	}
	if u.Def.User != "" {
		env = slices.Delete(env, 1, 2)
	}
	config.Env = override(env, u.Def.Env)
}

// override returns an environment with the variables of another in place of its own.
func override(env, with []string) []string {
	given := map[string]bool{}
	for _, entry := range with {
		given[variable(entry)] = true
	}
	return append(slices.DeleteFunc(slices.Clone(env), func(entry string) bool { return given[variable(entry)] }), with...)
}

func variable(entry string) string {
	name, _, _ := strings.Cut(entry, "=")
	return name
}

// checkPath checks an absolute path of a container or the node, and reports whether there is one to go on with. An empty one is
// no fault.
func checkPath(at, path string, faults *errs.Faults) bool {
	switch {
	case path == "":
	case strings.ContainsRune(path, 0):
		faults.Add(at, "has a NUL character, which no path has")
	case !strings.HasPrefix(path, "/"):
		faults.Add(at, "%q is not an absolute path", path)
	case len(path) > maxPath:
		faults.Add(at, "is %d bytes long, more than %d", len(path), maxPath)
	default:
		return true
	}
	return false
}

// checkUser checks what becomes user[:group]; whether the image has them is seen when it is started.
func checkUser(spec string, systemd bool, faults *errs.Faults) {
	if spec == "" {
		return
	}
	if systemd {
		faults.Add("user", "means nothing with systemd, which is root: leave it out")
		return
	}
	parts := strings.Split(spec, ":")
	if len(parts) > 2 {
		faults.Add("user", "%q has more than one colon: give user or user:group", spec)
		return
	}
	for i, part := range parts {
		what := [...]string{"user", "group"}[i]
		switch {
		case part == "":
			faults.Add("user", "%q lacks the %s", spec, what)
		case len(part) > 256 || strings.ContainsFunc(part, unicode.IsControl):
			faults.Add("user", "%.80q is not the name of a %s", part, what)
		case strings.Trim(part, "0123456789") == "" && !isID(part):
			faults.Add("user", "%s is not the number of a %s: these are 0 to %d", part, what, maxID)
		}
	}
}

func isID(text string) bool {
	n, err := strconv.ParseUint(text, 10, 64)
	return err == nil && n <= maxID
}
