// Package cli is the command-line client of ImageAPI. Each group of commands has a file; all of them talk to the server by
// the client that is generated from swagger.yaml and show the models that are generated with it.
package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/jessevdk/go-flags"

	"github.com/kraken-hpc/imageapi/internal/printable"
	build "github.com/kraken-hpc/imageapi/internal/version"
)

// Streams are what a command reads and writes.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// options are those of all commands.
type options struct {
	Server  server `group:"The server"`
	Output  string `short:"o" long:"output" default:"table" choice:"table" choice:"json" choice:"yaml" description:"output format"`
	Version bool   `long:"version" description:"show the version and exit"`
}

// app is one call of the program.
type app struct {
	options
	in        io.Reader
	out       *sink
	err       io.Writer
	outWidth  int // of the terminal that out is; 0 if it is none
	errWidth  int // likewise
	now       func() time.Time
	client    *connection // made when it is first needed
	completed bool        // a shell asked for completions and has them
}

// runner is a command: a struct whose fields are its options and arguments.
type runner interface {
	run(ctx context.Context, a *app) error
}

// Run performs one command line, without the program's name, and returns the exit status.
func Run(ctx context.Context, args []string, s Streams, version string) int {
	a := &app{in: s.In, out: &sink{w: s.Out}, err: s.Err, outWidth: widthOf(s.Out), errWidth: widthOf(s.Err), now: time.Now}
	err := a.perform(ctx, args, version)
	if a.out.err != nil {
		err = fmt.Errorf("write the output: %w", a.out.err)
	}
	if err == nil {
		return exitOK
	}
	a.report(err)
	return statusOf(err)
}

// perform parses a command line and runs its command.
func (a *app) perform(ctx context.Context, args []string, version string) error {
	parser, runners := a.parser()
	if len(args) > 0 && args[0] == "help" {
		args = append(slices.Clone(args[1:]), "--help")
	}
	rest, err := parser.ParseArgs(args)
	if parser.FindOptionByLongName("host").IsSetDefault() { // an empty variable, not an empty option
		a.Server.Host = cmp.Or(a.Server.Host, defaultHost)
	}
	if help, ok := errors.AsType[*flags.Error](err); ok && help.Type == flags.ErrHelp {
		_, _ = fmt.Fprintln(a.out, help.Message)
		return nil
	}
	switch {
	case err != nil:
		return inWords(err)
	case a.Version:
		a.printf("imageapi %s, commit %s\n", version, build.Revision())
		return nil
	case a.completed:
		return nil
	case parser.Active == nil && len(rest) > 0:
		return usage("there is no command %q: see imageapi --help", rest[0])
	case parser.Active == nil:
		return usage("which command? See imageapi --help")
	case len(rest) > 0:
		return usage("unexpected argument %q", rest[0])
	}
	return runners[parser.Active.Name].run(ctx, a)
}

// inWords returns an error of the command line; what an option takes it says in other words than Go's names of types.
func inWords(err error) error {
	option, rest, _ := strings.Cut(err.Error(), " (expected ")
	switch kind, _, _ := strings.Cut(rest, ")"); kind {
	case "time.Duration":
		return usage("%s: give a time with its unit, such as 1s", option)
	case "*int64", "[]int64":
		return usage("%s: give a whole number", option)
	}
	return usage("%w", err)
}

// A command is an entry of the list of all commands.
type command struct {
	name, short, long string
	runner            runner
}

func commands() []command {
	return []command{
		{"list", "list objects", "Lists containers, mounts and attachments, or only the classes that you name.", new(listCommand)},
		{"tree", "show dependencies", "Shows all objects, or one of them, each above its dependencies.", new(treeCommand)},
		{"show", "show all fields of an object", "Shows all fields of objects, as the server returns them.", new(showCommand)},
		{"create", "create an object from a definition", "Creates the object that a file defines, with its dependencies: a container, a mount or an attachment.", new(createCommand)},
		{"run", "create and start a container", "Creates a container like create, and always starts it. An image given by a URI needs no definition: the container runs in an overlay over it.", new(runCommand)},
		{"start", "start containers", "Starts containers that have ended or were never started.", new(startCommand)},
		{"stop", "stop containers", "Stops containers and waits until they have ended. You can start them again.", new(stopCommand)},
		{"pause", "freeze containers", "Freezes all processes of containers.", new(pauseCommand)},
		{"resume", "thaw containers", "Resumes paused containers.", new(resumeCommand)},
		{"update", "change a container", "Changes labels, limits, the restart policy and the stop timeout of a container without restarting it.", new(updateCommand)},
		{"rename", "give a container another name", "Gives a container another name. It continues to run.", new(renameCommand)},
		{"replace", "replace a container by a new version", "Replaces a running container by a new version. If the new one fails, the old one is started again. The file contains the fields that change, or the whole definition.", new(replaceCommand)},
		{"rollback", "return to the old version of a container", "Returns to the version that replace --keep-old has kept.", new(rollbackCommand)},
		{"remove", "remove objects", "Deletes objects, and then the dependencies that only they referenced.", new(removeCommand)},
		{"logs", "show the output of a container", "Prints the standard output and standard error of a container.", new(logsCommand)},
		{"exec", "run a command in a container", "Runs a command in a running container and ends as it ends. Its input and output pass unchanged. What follows the container is the command.", new(execCommand)},
		{"wait", "wait for a container", "Waits until a container is in a state, by default until it has ended.", new(waitCommand)},
		{"events", "show every change", "Shows every change of containers, mounts and attachments as it happens, or only of the classes that you name.", new(eventsCommand)},
		{"stats", "show the resource usage of containers", "Shows the current resource usage of all running containers, or of those that you name.", new(statsCommand)},
		{"demo-image", "create a small image to try things with", "Creates a small image file (EROFS) with a shell, from programs of this machine. Its /sbin/init prints a line and runs until it is stopped. Existing files are never replaced.", new(demoCommand)},
		{"completion", "print a completion script for bash", "Prints a completion script for bash: source <(imageapi completion)", new(completionCommand)},
	}
}

// parser returns the parser of command lines and what runs each command.
func (a *app) parser() (*flags.Parser, map[string]runner) {
	p := flags.NewNamedParser("imageapi", flags.HelpFlag|flags.PassDoubleDash)
	p.ShortDescription = "what is on a node, by its imageapi-server"
	p.LongDescription = "Shows and changes the attachments, mounts and containers of a node. It sends its requests to the imageapi-server of the node."
	p.SubcommandsOptional = true
	a.Server.Host = defaultHost
	p.CompletionHandler = a.complete
	_, err := p.AddGroup("Options", "", &a.options)
	runners := map[string]runner{}
	for _, c := range commands() {
		added, failed := p.AddCommand(c.name, c.short, c.long, c.runner)
		if err = errors.Join(err, failed); err != nil {
			panic(err) // a tag of ours is wrong, which every test of this package would see
		}
		added.PassAfterNonOption = c.name == "exec"
		added.Aliases = aliases(c.name)
		runners[c.name] = c.runner
	}
	return p, runners
}

// Manual writes what a manual page says about the commands, for man(7).
func Manual(out io.Writer) error {
	p, _ := new(app).parser()
	p.Usage = "[OPTIONS] COMMAND"
	p.WriteManPage(out)
	return nil
}

// aliases are the short names that other tools of this kind have made a habit.
func aliases(name string) []string {
	switch name {
	case "list":
		return []string{"ls"}
	case "remove":
		return []string{"rm"}
	}
	return nil
}

func (a *app) printf(format string, args ...any) { _, _ = fmt.Fprintf(a.out, format, args...) }

// warn tells the user something that is neither a result nor a failure.
func (a *app) warn(text string) { _, _ = fmt.Fprintf(a.err, "imageapi: %s\n", printable.Text(text)) }

// sink remembers the first error of writing the output, which Run reports.
type sink struct {
	w   io.Writer
	err error
}

func (s *sink) Write(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.w.Write(p)
	s.err = err
	return n, err
}
