// Package archtest holds the rules of this tree that the compiler does not know: which package may import which,
// and what no package may do.
package archtest

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/kraken-hpc/imageapi/"

// layers tells for each part of the tree which other parts it may import. A name ending in a slash means the
// packages below it, else that package alone; the longest name that fits counts. Imports point one way:
// cmd, daemon, api, state, driver; and daemon, builtin, drivers, sys.
var layers = map[string][]string{
	"client":   {"client/"},
	"client/":  {"models"},
	"models":   {},
	"restapi":  {"restapi/"},
	"restapi/": {"restapi/", "models"},

	"cmd/imageapi":        {"internal/cli"},
	"cmd/imageapi-init":   {"internal/proc/"},
	"cmd/imageapi-keeper": {"internal/web/keep"},
	"cmd/imageapi-server": {"internal/daemon", "internal/logkey", "internal/version"},

	"internal/cli":        {"client", "client/", "internal/printable", "internal/version", "models"},
	"internal/printable":  {},
	"internal/errs":       {},
	"internal/keylock":    {},
	"internal/logkey":     {},
	"internal/mounttable": {},
	"internal/slots":      {},
	"internal/waits":      {},
	"internal/sys/iscsi":  {"internal/sys/failpoint"}, // it can be used without the rest
	"internal/sys/":       {"internal/errs", "internal/logkey", "internal/mounttable", "internal/sys/", "internal/waits"},

	"internal/driver":         {"internal/errs", "internal/mounttable", "internal/sys/extent", "models"},
	"internal/driver/":        {"internal/driver", "internal/driver/", "internal/errs", "internal/keylock", "internal/logkey", "internal/mounttable", "internal/proc/", "internal/sys/", "internal/waits", "internal/web/", "models"},
	"internal/driver/builtin": {"internal/container", "internal/driver", "internal/driver/", "internal/proc/oneshot", "internal/sys/"},

	"internal/container":                   {"internal/container/", "internal/driver", "internal/errs", "internal/logkey", "internal/mounttable", "internal/proc/", "internal/sys/", "models"},
	"internal/container/initbin":           {"internal/proc/spawn"},
	"internal/state":                       {"internal/driver", "internal/errs", "internal/keylock", "internal/logkey", "internal/mounttable", "internal/state/", "internal/sys/failpoint", "internal/waits"},
	"internal/state/":                      {"internal/logkey", "internal/state/"},
	"internal/proc/":                       {"internal/errs", "internal/proc/", "internal/sys/", "internal/waits"},
	"internal/proc/wire":                   {"internal/sys/fsmount"},
	"internal/sys/dm":                      {"internal/errs", "internal/proc/oneshot", "internal/sys/"},
	"internal/sys/rbd":                     {"internal/errs", "internal/proc/oneshot", "internal/sys/"},
	"internal/web/":                        {"internal/errs", "internal/sys/failpoint", "internal/web/"},
	"internal/web/keep":                    {"internal/proc/", "internal/web/"},
	"docs":                                 {},
	"docs/api":                             {},
	"internal/api":                         {"docs", "docs/api", "internal/driver", "internal/errs", "internal/logkey", "internal/printable", "internal/slots", "internal/state", "models", "restapi", "restapi/"},
	"internal/daemon":                      {"internal/", "models", "restapi"},
	"internal/audit":                       {"internal/logkey"},
	"internal/metrics":                     {"internal/driver", "internal/state", "internal/version"},
	"internal/testkit":                     {},
	"internal/driver/drivertest":           {"internal/driver", "internal/errs", "internal/mounttable", "internal/sys/failpoint", "internal/testkit", "models"},
	"internal/version":                     {},
	"internal/driver/drivertest/mounttest": {"internal/driver", "internal/errs", "internal/sys/", "internal/testkit", "models"},
	"internal/archtest":                    {},
	"internal/spectest":                    {},
	"build/":                               {},
	"build/man":                            {"internal/cli", "internal/daemon"},
	"build/rules":                          {"restapi"},
	"test/":                                {"client", "client/", "internal/testkit", "models", "test/"},
}

// helpers are packages for tests: they may import testing and each other, and no program may import them.
var helpers = []string{"internal/driver/drivertest", "internal/driver/drivertest/mounttest", "internal/testkit", "test/"}

// only tells which packages may be imported in a few places only, and where.
var only = map[string][]string{
	"net/http":                            {"client/", "restapi", "restapi/", "internal/api", "internal/cli", "internal/daemon", "internal/driver/attach/web", "internal/metrics", "internal/testkit", "internal/web/", "test/"},
	"testing":                             helpers,
	module + "internal/testkit":           helpers,
	module + "internal/driver/drivertest": helpers,
	module + "internal/driver/drivertest/mounttest": helpers,
}

// A goPackage is what `go list -json` says of a package.
type goPackage struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	Imports    []string
	Deps       []string
	Export     string // a file, with -export
}

func TestImportsPointOneWay(t *testing.T) {
	t.Parallel()
	for _, p := range list(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		allowed, ok := layers[longest(name)]
		if !ok {
			t.Errorf("%s: no layer: say in layers what it may import", name)
			continue
		}
		for _, imported := range p.Imports {
			if own, ok := strings.CutPrefix(imported, module); ok && !fits(own, allowed) {
				t.Errorf("%s imports %s: it may import only %q", name, own, allowed)
			}
			if where, limited := only[imported]; limited && !fits(name, where) {
				t.Errorf("%s imports %s: only %q may", name, imported, where)
			}
		}
	}
}

// heavy are packages that the programs next to containers and devices must not link: each has one, which stays in memory.
var heavy = map[string][]string{
	"cmd/imageapi-init":   {"fmt", "encoding/json", "net", "regexp", "crypto/tls"},
	"cmd/imageapi-keeper": {module + "models", module + "internal/state", module + "internal/driver", module + "internal/container"},
}

func TestProgramsAreSmall(t *testing.T) {
	t.Parallel()
	seen := 0
	for _, p := range list(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		for _, dep := range heavy[name] {
			seen++
			if slices.Contains(p.Deps, dep) {
				t.Errorf("%s links %s", name, dep)
			}
		}
	}
	if seen != 9 {
		t.Errorf("%d rules were looked at", seen)
	}
}

func TestForbiddenCode(t *testing.T) {
	t.Parallel()
	for _, p := range list(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		if fits(name, []string{"client", "client/", "models", "restapi", "restapi/"}) {
			continue
		}
		for _, file := range p.GoFiles {
			inspect(t, name, filepath.Join(p.Dir, file))
		}
	}
}

// inspect reports what a file must not contain.
func inspect(t *testing.T, name, path string) {
	t.Helper()
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			if n.Name.Name == "init" && n.Recv == nil {
				t.Errorf("%s: init(): do it where it is wanted", files.Position(n.Pos()))
			}
		case *ast.TypeAssertExpr:
			if to, ok := n.Type.(*ast.SelectorExpr); ok && isAbility(name, to) {
				t.Errorf("%s: ask driver.As for %s: a covering unit, as with verity, keeps it below", files.Position(n.Pos()), to.Sel.Name)
			}
		case *ast.SelectorExpr:
			if reason := forbidden(name, n); reason != "" {
				t.Errorf("%s: %s", files.Position(n.Pos()), reason)
			}
		}
		return true
	})
}

// isAbility reports whether a type of package driver is asserted in another package: of those a unit is, only that of containers may be.
func isAbility(name string, to *ast.SelectorExpr) bool {
	from, ok := to.X.(*ast.Ident)
	return ok && from.Name == "driver" && name != "internal/driver" && to.Sel.Name != "ContainerUnit"
}

// forbidden tells why a use of another package's function is not allowed in package name, or nothing.
func forbidden(name string, use *ast.SelectorExpr) string {
	from, ok := use.X.(*ast.Ident)
	if !ok {
		return ""
	}
	switch from.Name + "." + use.Sel.Name {
	case "time.Sleep":
		if name != "internal/testkit" {
			return "time.Sleep: wait for the event itself"
		}
	case "os.Exit", "log.Fatal", "log.Fatalf":
		if !fits(name, []string{"cmd/", "build/"}) {
			return "only a command's main may end the process"
		}
	case "unix.UnixRights", "unix.ParseUnixRights":
		if name != "internal/proc/wire" {
			return "one codec: internal/proc/wire sends and receives messages and descriptors"
		}
	case "unix.MNT_DETACH", "syscall.MNT_DETACH":
		if !fits(name, []string{"internal/proc/", "internal/sys/"}) {
			return "lazy unmounts hide what is still in use; only a container's own mount namespace may"
		}
	}
	return ""
}

// longest returns the longest key of layers that names package name.
func longest(name string) string {
	var best string
	for key := range layers {
		if len(key) > len(best) && fits(name, []string{key}) {
			best = key
		}
	}
	return best
}

// fits tells whether one of the names means package name.
func fits(name string, names []string) bool {
	return slices.ContainsFunc(names, func(n string) bool {
		return n == name || strings.HasSuffix(n, "/") && strings.HasPrefix(name, n)
	})
}

// list returns all packages of the module.
func list(t *testing.T) []goPackage {
	t.Helper()
	return decode(t, exec.Command("go", "list", "-e", "-json=ImportPath,Dir,GoFiles,Imports,Deps", module+"..."))
}

func decode(t *testing.T, cmd *exec.Cmd) []goPackage {
	t.Helper()
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", cmd, err)
	}
	var packages []goPackage
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		err := decoder.Decode(&p)
		if errors.Is(err, io.EOF) {
			return packages
		}
		if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}
