package archtest

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// privileged are the functions that change the node, or may. The failpoint's rule is about them: what reaches one must do so inside
// of a function that is given to failpoint.Hook.Do. A name that ends in * means all that begin so.
var privileged = map[string]string{
	"golang.org/x/sys/unix": `Mount MoveMount OpenTree Fsopen Fspick Fsconfig* Fsmount MountSetattr Unmount PivotRoot Chroot Unshare Setns Sethostname
		Mknod Mknodat Mkdir Mkdirat Rmdir Unlink Unlinkat Symlink Symlinkat Link Linkat Rename Renameat Renameat2 Truncate Ftruncate
		Chmod Fchmod Fchmodat Chown Lchown Fchown Fchownat Setxattr Lsetxattr Fsetxattr Removexattr Lremovexattr Fremovexattr
		IoctlSet* IoctlLoopConfigure IoctlLoopSetStatus* Syscall Syscall6 RawSyscall RawSyscall6 SyscallNoError RawSyscallNoError
		InitModule FinitModule DeleteModule AddKey KeyctlInt KeyctlString KeyctlBuffer RequestKey Kill Tgkill PidfdSendSignal
		Reboot Swapon Swapoff Sync Syncfs Sendto Sendmsg Flock Capset Prctl Setrlimit Prlimit`,
	"syscall": `ForkExec StartProcess Exec Mount Unmount Kill Syscall Syscall6 RawSyscall RawSyscall6 Mknod Mkdir Rmdir`,
	"os": `StartProcess Mkdir MkdirAll MkdirTemp Remove RemoveAll Rename WriteFile Create CreateTemp Symlink Link Chmod Chown Lchown
		Truncate (*Process).Kill (*Process).Signal (*File).Chmod (*File).Chown (*File).Truncate (*File).Sync (*Root).*`,
	"os/exec": `(*Cmd).Start (*Cmd).Run (*Cmd).Output (*Cmd).CombinedOutput`,
}

// writing are the flags by which an open file can change the node; so opening one is an act.
var writing = []string{"O_WRONLY", "O_RDWR", "O_CREATE", "O_CREAT", "O_TRUNC"}

// unguarded are the functions that may act without a failpoint, each with the reason. What is reached through one is not looked at.
var unguarded = map[string]string{
	"cmd/imageapi-server.leaveNoCore": "about the daemon itself, before there is an object",

	"internal/daemon.claim":      "the run directory and its lock come before all else, and stay",
	"internal/daemon.listenUnix": "a socket is no part of any object",

	"(*internal/audit.file).begin":  "the audit log is no part of any object",
	"(*internal/audit.file).append": "as begin",
	"(*internal/audit.file).rotate": "as begin",
	"(*internal/audit.file).end":    "as begin",
	"internal/daemon.removeStale":   "as listenUnix",

	"(*internal/sys/cgroup.Parent).lock": "as claim",

	"internal/state/journal.Open":           "a file is set aside before there is an object",
	"(*internal/state/journal.floor).raise": "a part of writing the journal, which has a failpoint",

	"internal/container.takeOpenFiles":                  "the daemon's own limit of open files",
	"internal/sys/block.ioctl":                          "asks a device",
	"(internal/sys/dm.request).ask":                     "asks for a device",
	"internal/sys/sockdiag.Lookup":                      "asks for a socket",
	"(*internal/container.process).firstGone":           "asks for a process: signal 0",
	"(*internal/sys/loop.Loop).free":                    "opens a device; what is done with it has failpoints",
	"(*internal/sys/loop.Loop).control":                 "as free",
	"internal/sys/loop.setStatus":                       "changeFlags takes it through a failpoint",
	"(*internal/driver/attach/loopback.unit).openFound": "opens an image; what is done with it has failpoints",

	// The kernel refuses nobody to kill his child, and whoever is killed before has not killed either.
	"(*internal/proc/oneshot.Runner).spawn":   "kills a helper",
	"(*internal/proc/oneshot.process).finish": "kills a helper",

	"(*internal/container.Driver).Launch": "package keeper starts its programs behind a failpoint",
	"internal/sys/nbd.dial":               "asks for a family of generic netlink",
	"internal/proc/wire.Send":             "sends a message to a process of ours",
	"internal/sys/fsmount.Accepts":        "asks the kernel, and makes nothing",
	"(internal/proc/spawn.PIDFD).Signal":  "kills a companion",
}

// isBeside tells whether a function is part of the programs beside and inside containers and beside devices, where a failpoint can't be: a
// crash test kills them from the outside. The client is another one: it acts on files and the terminal of its user, and on objects through the server.
func isBeside(name string) bool {
	return slices.ContainsFunc([]string{
		"cmd/imageapi-init.", "internal/cli.", "internal/web/keep.",
		"internal/proc/act.", "internal/proc/child.", "internal/proc/companion.", "internal/proc/exec.", "internal/proc/inside.", "internal/proc/supervisor.",
	}, func(part string) bool { return strings.Contains(name, part) })
}

// TestEveryActPassesAFailpoint: what no failpoint sees no test can fail or die at.
func TestEveryActPassesAFailpoint(t *testing.T) {
	t.Parallel()
	tree := load(t)
	used := map[string]bool{}
	for name, f := range tree.functions {
		if isBeside(name) {
			continue
		}
		for _, act := range f.acts {
			if unguarded[name] != "" {
				used[name] = true
				continue
			}
			if ways := tree.open(name, nil, used); len(ways) > 0 {
				t.Errorf("%s: %s is reached without a failpoint, by %d ways, such as %s", act.at, act.name, len(ways), slices.MinFunc(ways, shorter))
			}
		}
	}
	for name := range unguarded {
		if !used[name] {
			t.Errorf("unguarded: %s does nothing that needs an exception", name)
		}
	}
	if len(tree.failpoints) < 40 {
		t.Errorf("only %d kinds of acts were found", len(tree.failpoints))
	}
}

// A function is one that is declared in the tree.
type function struct {
	acts    []act
	callers []string // that call it, or take its value, outside of a failpoint
	called  bool     // also inside of one
}

type act struct{ name, at string }

// A source is the tree, as far as it can act.
type source struct {
	files      *token.FileSet
	functions  map[string]*function
	failpoints map[string]bool // the names of the acts that pass one
}

// open returns by which ways a function is reached without a failpoint: each a list of functions, from the outermost.
func (s *source) open(name string, below []string, used map[string]bool) (chains []string) {
	if slices.Contains(below, name) {
		return nil
	}
	if unguarded[name] != "" {
		used[name] = true
		return nil
	}
	below = append(slices.Clone(below), name)
	f := s.functions[name]
	outer := slices.DeleteFunc(slices.Clone(f.callers), isBeside)
	if len(outer) == 0 {
		if f.called || len(f.callers) > 0 {
			return nil // only behind a failpoint, or beside
		}
		slices.Reverse(below)
		return []string{strings.Join(below, ", ")}
	}
	for _, caller := range outer {
		chains = append(chains, s.open(caller, below, used)...)
	}
	return chains
}

// load reads what daemon and imageapi-init are made of.
func load(t *testing.T) *source {
	t.Helper()
	s := &source{functions: map[string]*function{}, failpoints: map[string]bool{}}
	for _, p := range checked(t) {
		s.files = p.files
		for _, file := range p.parsed {
			s.take(p.ImportPath, file, p.info)
		}
	}
	return s
}

// A checkedPackage is one with its types.
type checkedPackage struct {
	goPackage
	files  *token.FileSet // the same for all
	parsed []*ast.File
	info   *types.Info
}

var (
	checking        sync.Once // it takes seconds
	checkedPackages []checkedPackage
)

// checked returns the packages of the programs with their types.
func checked(t *testing.T) []checkedPackage {
	t.Helper()
	checking.Do(func() { checkedPackages = check(t) })
	return checkedPackages
}

func check(t *testing.T) (all []checkedPackage) {
	t.Helper()
	files := token.NewFileSet()
	packages, exports := listed(t)
	lookup := func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) }
	config := types.Config{Importer: importer.ForCompiler(files, "gc", lookup)}
	for _, p := range packages {
		c := checkedPackage{goPackage: p, files: files, info: &types.Info{
			Uses: map[*ast.Ident]types.Object{}, Defs: map[*ast.Ident]types.Object{}, Types: map[ast.Expr]types.TypeAndValue{},
		}}
		for _, name := range p.GoFiles {
			file, err := parser.ParseFile(files, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			c.parsed = append(c.parsed, file)
		}
		if _, err := config.Check(p.ImportPath, files, c.parsed, c.info); err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	return all
}

// listed returns the packages of the tree that matter, and where the compiler has put what it knows of each.
func listed(t *testing.T) (own []goPackage, exports map[string]string) {
	t.Helper()
	exports = map[string]string{}
	all := decode(t, exec.Command("go", "list", "-export", "-deps", "-json=ImportPath,Dir,GoFiles,Export", module+"cmd/..."))
	for _, p := range all {
		exports[p.ImportPath] = p.Export
		if fits(strings.TrimPrefix(p.ImportPath, module), []string{"internal/", "cmd/"}) && strings.HasPrefix(p.ImportPath, module) {
			own = append(own, p)
		}
	}
	return own, exports
}

// take notes what the functions of a file do and whom they call.
func (s *source) take(path string, file *ast.File, info *types.Info) {
	for _, d := range file.Decls {
		owner := strings.TrimPrefix(path, module) + ".init"
		if f, ok := d.(*ast.FuncDecl); ok {
			owner = nameOf(info.Defs[f.Name].(*types.Func))
		}
		v := visitor{source: s, info: info, owner: owner}
		s.function(owner)
		ast.Walk(v, d)
	}
}

func (s *source) function(name string) *function {
	f := s.functions[name]
	if f == nil {
		f = &function{}
		s.functions[name] = f
	}
	return f
}

// A visitor walks through a function.
type visitor struct {
	*source
	info    *types.Info
	owner   string
	guarded bool
}

func (v visitor) Visit(n ast.Node) ast.Visitor {
	switch n := n.(type) {
	case *ast.CallExpr:
		if v.isFailpoint(n) {
			inside := v
			inside.guarded = true
			ast.Walk(inside, n.Args[1])
			if name, err := strconv.Unquote(text(n.Args[0])); err == nil {
				v.failpoints[name] = true
			}
			return nil
		}
		if len(n.Args) > 0 && opens(n) {
			v.note("open for writing", n.Pos())
		}
	case *ast.Ident:
		f, ok := v.info.Uses[n].(*types.Func)
		if !ok || f.Pkg() == nil {
			return v
		}
		switch name := nameOf(f); {
		case isPrivileged(f):
			v.note(name, n.Pos())
		case strings.HasPrefix(f.Pkg().Path(), module):
			v.calls(f)
		}
	}
	return v
}

func (v visitor) note(name string, at token.Pos) {
	if !v.guarded {
		p := v.files.Position(at)
		f := v.function(v.owner)
		f.acts = append(f.acts, act{name, fmt.Sprintf("%s:%d", p.Filename[strings.Index(p.Filename, "/internal/")+1:], p.Line)})
	}
}

func (v visitor) calls(f *types.Func) {
	to := v.function(nameOf(f))
	to.called = true
	if !v.guarded && nameOf(f) != v.owner {
		to.callers = append(to.callers, v.owner)
	}
}

// isFailpoint tells whether a call is one of failpoint.Hook.Do.
func (v visitor) isFailpoint(call *ast.CallExpr) bool {
	s, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	f, ok := v.info.Uses[s.Sel].(*types.Func)
	return ok && nameOf(f) == "(internal/sys/failpoint.Hook).Do"
}

// opens tells whether a call has a flag that opens a file for writing. What is written to /dev/null changes nothing.
func opens(call *ast.CallExpr) bool {
	if s, ok := call.Args[0].(*ast.SelectorExpr); ok && s.Sel.Name == "DevNull" {
		return false
	}
	return slices.ContainsFunc(call.Args, func(arg ast.Expr) bool {
		found := false
		ast.Inspect(arg, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr, *ast.FuncLit:
				return false // with arguments of its own
			case *ast.SelectorExpr:
				found = found || slices.Contains(writing, n.Sel.Name)
			}
			return true
		})
		return found
	})
}

func isPrivileged(f *types.Func) bool {
	name := strings.TrimPrefix(strings.Replace(nameOf(f), f.Pkg().Path()+".", "", 1), ".")
	return slices.ContainsFunc(strings.Fields(privileged[f.Pkg().Path()]), func(p string) bool {
		begin, any := strings.CutSuffix(p, "*")
		return p == name || any && strings.HasPrefix(name, begin)
	})
}

func shorter(a, b string) int { return cmp.Compare(len(a), len(b)) }

// nameOf names a function as a reader would: internal/sys/loop.Attach, (*internal/sys/loop.Device).Keep.
func nameOf(f *types.Func) string { return strings.ReplaceAll(f.Origin().FullName(), module, "") }

func text(e ast.Expr) string {
	if literal, ok := e.(*ast.BasicLit); ok {
		return literal.Value
	}
	return ""
}
