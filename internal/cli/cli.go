// Package cli is the command-line client of ImageAPI. Each group of commands has a file. All of them use the client that is generated
// from swagger.yaml, and show the models that are generated with it.
package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/kraken-hpc/imageapi/client/node"
	"github.com/kraken-hpc/imageapi/internal/printable"
	build "github.com/kraken-hpc/imageapi/internal/version"
)

// Streams are what a command reads and writes.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// app is one call of the program.
type app struct {
	server   server
	context  string
	format   format
	quiet    bool
	in       io.Reader
	out, err *sink
	outWidth int // of the terminal that out is; 0 if it is none
	errWidth int // likewise
	now      func() time.Time
	version  string
	client   *connection // set when it is first needed
	idle     func()      // ends the display of progress
}

// Run performs one command line, without the program's name, and returns the exit status.
func Run(ctx context.Context, args []string, s Streams, version string) int {
	return newApp(s, version).run(ctx, args)
}

func newApp(s Streams, version string) *app {
	busy := &busyLine{to: s.Err}
	return &app{
		in: s.In, out: &sink{busy: busy, w: s.Out}, err: &sink{busy: busy, w: s.Err},
		outWidth: widthOf(s.Out), errWidth: widthOf(s.Err), now: time.Now, version: version, idle: func() {},
	}
}

func (a *app) run(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	root.SetOut(a.out)
	root.SetErr(a.err)
	err := root.ExecuteContext(ctx)
	a.idle()
	if a.out.err != nil {
		err = fmt.Errorf("write the output: %w", a.out.err)
	}
	if err == nil {
		return exitOK
	}
	a.report(err)
	return statusOf(err)
}

// The groups of commands in the help.
const (
	groupObjects    = "objects"
	groupContainers = "containers"
	groupWatch      = "watch"
	groupClient     = "client"
)

// root returns the program as a command, with all others below it.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use: "imageapi [OPTIONS] COMMAND", DisableFlagsInUseLine: true,
		Short: "Manage the system images on a node",
		Long:  "Lists and changes the attachments, mounts and containers of a node, through its imageapi-server.",
		Example: `imageapi demo-image /tmp/demo.erofs
imageapi run file:///tmp/demo.erofs --name demo
imageapi list
imageapi exec -it demo sh
imageapi remove --force demo`,
		Version: a.versionLine(), SilenceErrors: true, SilenceUsage: true,
		Args: unknownCommand, RunE: func(*cobra.Command, []string) error { return usage("no command given; see imageapi --help") },
		PersistentPreRunE: a.prepare, CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.SetVersionTemplate("{{.Version}}")
	root.SetUsageFunc(usageOf)
	root.SetHelpCommand(helpCommand())
	root.SetFlagErrorFunc(flagError)
	a.globalOptions(root)
	root.AddGroup(&cobra.Group{ID: groupObjects, Title: "Objects"}, &cobra.Group{ID: groupContainers, Title: "Containers"},
		&cobra.Group{ID: groupWatch, Title: "Watching"}, &cobra.Group{ID: groupClient, Title: "This program"})
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			name, arguments, _ := strings.Cut(c.Use, " ")
			c.Use, c.DisableFlagsInUseLine, c.GroupID = strings.TrimSpace(name+" [OPTIONS] "+arguments), true, group
			root.AddCommand(c)
		}
	}
	add(groupObjects, a.listCommand(), a.treeCommand(), a.showCommand(), a.exportCommand(), a.createCommand(), a.applyCommand(), a.removeCommand())
	add(groupContainers, a.runCommand(), a.startCommand(), a.stopCommand(), a.restartCommand(), a.killCommand(), a.pauseCommand(), a.resumeCommand(), a.execCommand(), a.attachCommand(),
		a.updateCommand(), a.renameCommand(), a.replaceCommand(), a.rollbackCommand())
	add(groupWatch, a.logsCommand(), a.waitCommand(), a.eventsCommand(), a.statsCommand())
	add(groupClient, a.contextCommand(), a.demoCommand(), a.completionCommand(), a.versionCommand(), a.relayCommand())
	return root
}

// globalOptions adds the options of all commands.
func (a *app) globalOptions(root *cobra.Command) {
	all := root.PersistentFlags()
	a.server.options(all)
	all.StringVarP(&a.context, "context", "c", "", "use the server with this `NAME`; see imageapi context (default: $IMAGEAPI_CONTEXT)")
	all.VarP(&a.format, "output", "o", "`FORMAT` of the output: "+strings.Join(formats(), ", "))
	all.BoolVarP(&a.quiet, "quiet", "q", false, "print only IDs")
	all.BoolP("help", "h", false, "show the help of a command")
	root.Flags().Bool("version", false, "show the version and exit")
	complete(root, "output", formats()...)
	err := root.RegisterFlagCompletionFunc("context", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) { return contextNames() })
	if err != nil {
		panic(err) // as in complete
	}
}

// prepare runs before each command.
func (a *app) prepare(c *cobra.Command, _ []string) error {
	if a.quiet && c.Flags().Changed("output") {
		return usage("--quiet and --output: use one of them")
	}
	if doing := c.Annotations[slow]; doing != "" {
		a.idle = a.busy(c.Context(), doing)
	}
	return nil
}

func (a *app) versionLine() string {
	return fmt.Sprintf("imageapi %s, commit %s\n", a.version, build.Revision())
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Show the versions of the client and the server", Args: between(0, 0), Example: "imageapi version", Annotations: slowly("asking"),
		RunE: func(c *cobra.Command, _ []string) error {
			a.printf("%s", a.versionLine())
			client, err := a.connect()
			if err != nil {
				return err
			}
			info, err := client.Node.GetInfoContext(c.Context(), &node.GetInfoParams{})
			if err != nil {
				return unwrapped(err)
			}
			a.printf("imageapi-server %s at %s\n", printable.Text(info.Payload.Version), client.courier.host)
			return nil
		},
	}
}

// Commands returns the program as a command with all others below it, for its manual pages.
func Commands() *cobra.Command {
	return newApp(Streams{Out: io.Discard, Err: io.Discard}, "").root()
}

func (a *app) printf(format string, args ...any) { _, _ = fmt.Fprintf(a.out, format, args...) }

// warn prints something that is neither a result nor a failure.
func (a *app) warn(text string) { _, _ = fmt.Fprintf(a.err, "imageapi: %s\n", printable.Text(text)) }

// sink remembers the first error of writing the output, which Run reports.
type sink struct {
	busy *busyLine
	w    io.Writer
	err  error
}

func (s *sink) Write(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	s.busy.show("")
	n, err := s.w.Write(p)
	s.err = err
	return n, err
}

// busyLine is the line of a terminal that shows what a command waits for. It is gone before anything else is written.
type busyLine struct {
	to    io.Writer
	mu    sync.Mutex
	shown bool
}

// clearLine erases the line of the cursor.
const clearLine = "\r\x1b[K"

func (b *busyLine) show(text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.shown || text != "" {
		_, _ = io.WriteString(b.to, clearLine+text)
	}
	b.shown = text != ""
}

func getenv(name string) string { return os.Getenv("IMAGEAPI_" + name) }
