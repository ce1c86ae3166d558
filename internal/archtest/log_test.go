package archtest

import (
	"cmp"
	"flag"
	"fmt"
	"go/ast"
	"go/constant"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"os"
	"slices"
	"strings"
	"testing"
)

// messageAt is where a method of slog.Logger has its message, and levelOf its level.
var (
	messageAt = map[string]int{"Debug": 0, "Info": 0, "Warn": 0, "Error": 0, "DebugContext": 1, "InfoContext": 1, "WarnContext": 1, "ErrorContext": 1, "Log": 2, "LogAttrs": 2}
	levelOf   = map[string]string{"Debug": "DEBUG", "Info": "INFO", "Warn": "WARN", "Error": "ERROR"}
)

// keysPackage has the constants that alone can be keys of log lines.
const keysPackage = module + "internal/logkey"

// logLine is a call that writes to the log.
type logLine struct{ message, level string }

// logLines returns the log lines of a package and the faults of its log calls: each message is a constant, and each key one of
// internal/logkey.
func logLines(files *token.FileSet, parsed []*ast.File, info *types.Info) (lines []logLine, faults []string) {
	fault := func(at ast.Node, text string) {
		faults = append(faults, fmt.Sprintf("%s: %s", files.Position(at.Pos()), text))
	}
	for _, file := range parsed {
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CompositeLit:
				if isSlog(info.TypeOf(n), "Attr") && len(n.Elts) > 0 && !isKey(info, elementKey(n)) {
					fault(n, "the key of an attribute must be a constant of internal/logkey")
				}
			case *ast.CallExpr:
				name, method := slogCall(info, n)
				at, logs := messageAt[name]
				switch {
				case method && name == "With":
					at = -1
				case method && logs:
					if value := info.Types[n.Args[at]].Value; value != nil {
						lines = append(lines, logLine{constant.StringVal(value), levelIn(info, name, n)})
					} else {
						fault(n, "the message must be a constant; what varies is a key")
					}
				case !method && slices.Contains(strings.Fields("Any Bool Duration Float64 Group Int Int64 String Time Uint64"), name):
					if !isKey(info, n.Args[0]) {
						fault(n, "the key must be a constant of internal/logkey")
					}
					return true
				default:
					return true
				}
				if name != "LogAttrs" {
					keys(info, n, at+1, fault)
				}
			}
			return true
		})
	}
	return lines, faults
}

// keys checks the keys of a call, which begin at an argument and alternate with values.
func keys(info *types.Info, call *ast.CallExpr, first int, fault func(ast.Node, string)) {
	if call.Ellipsis.IsValid() {
		fault(call, "the keys must be in the call")
		return
	}
	for i := first; i < len(call.Args); i++ {
		if isSlog(info.TypeOf(call.Args[i]), "Attr") {
			continue
		}
		if !isKey(info, call.Args[i]) {
			fault(call.Args[i], "the key must be a constant of internal/logkey")
		}
		i++
	}
}

// slogCall returns the name of a called function of log/slog, and whether it is a method.
func slogCall(info *types.Info, call *ast.CallExpr) (name string, method bool) {
	selector, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return "", false
	}
	f, ok := info.Uses[selector.Sel].(*types.Func)
	if !ok || f.Pkg() == nil || f.Pkg().Path() != "log/slog" {
		return "", false
	}
	return f.Name(), f.Signature().Recv() != nil
}

func isSlog(t types.Type, name string) bool {
	named, ok := t.(*types.Named)
	return ok && named.Obj().Pkg() != nil && named.Obj().Pkg().Path() == "log/slog" && named.Obj().Name() == name
}

// elementKey returns the key of a slog.Attr that is written as a composite literal.
func elementKey(literal *ast.CompositeLit) ast.Expr {
	for _, e := range literal.Elts {
		pair, ok := e.(*ast.KeyValueExpr)
		if !ok {
			return e
		}
		if field, ok := pair.Key.(*ast.Ident); ok && field.Name == "Key" {
			return pair.Value
		}
	}
	return nil
}

// isKey reports whether an expression is a constant of internal/logkey. Package iscsi, which imports none of the rest, has copies.
func isKey(info *types.Info, e ast.Expr) bool {
	var name *ast.Ident
	switch e := e.(type) {
	case *ast.SelectorExpr:
		name = e.Sel
	case *ast.Ident:
		name = e
	default:
		return false
	}
	c, ok := info.Uses[name].(*types.Const)
	return ok && (c.Pkg().Path() == keysPackage || c.Pkg().Path() == module+"internal/sys/iscsi" && strings.HasPrefix(c.Name(), "key"))
}

// levelIn returns the level of a line. One that depends on the circumstances can be ERROR.
func levelIn(info *types.Info, method string, call *ast.CallExpr) string {
	if level := levelOf[strings.TrimSuffix(method, "Context")]; level != "" {
		return level
	}
	if selector, ok := call.Args[1].(*ast.SelectorExpr); ok && info.Types[call.Args[1]].Value != nil {
		return strings.ToUpper(strings.TrimPrefix(selector.Sel.Name, "Level"))
	}
	return "ERROR"
}

// TestLogLines: alerts and searches depend on constant messages and on keys that are the same everywhere.
func TestLogLines(t *testing.T) {
	t.Parallel()
	found := 0
	for _, p := range checked(t) {
		lines, faults := logLines(p.files, p.parsed, p.info)
		found += len(lines)
		for _, f := range faults {
			t.Error(f)
		}
	}
	if found < 50 {
		t.Errorf("found only %d log lines", found)
	}
}

// TestLogLinesFinds proves that TestLogLines finds each fault.
func TestLogLinesFinds(t *testing.T) {
	t.Parallel()
	files := token.NewFileSet()
	config := types.Config{Importer: importer.ForCompiler(files, "source", nil)}
	const head = "package x\nimport (\"context\"; \"log/slog\")\nfunc f(log *slog.Logger, s string, all ...any) {\n"
	for body, want := range map[string]int{
		`log.Warn("a")`:                0,
		`log.Warn("a" + "b")`:          0,
		`log.Warn(s)`:                  1,
		`log.Warn("a "+s)`:             1,
		`log.Info("a", "key", s)`:      1,
		`log.Error("a", s, 1, "b", 2)`: 2,
		`log.Debug("a", all...)`:       1,
		`log.With("key", s).Info("a")`: 1,
		`log.LogAttrs(context.Background(), slog.LevelWarn, "a")`:      0,
		`log.LogAttrs(context.Background(), slog.LevelWarn, s)`:        1,
		`log.WarnContext(context.Background(), "a", "key", s)`:         1,
		`log.Info("a", slog.String("key", s))`:                         1,
		`log.Info("a", slog.Attr{Key: "key"})`:                         1,
		`log.Info("a", slog.Attr{Key: s, Value: slog.StringValue(s)})`: 1,
	} {
		file, err := parser.ParseFile(files, "x.go", head+"_ = context.Background\n"+body+"\n}\n", parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		info := &types.Info{Uses: map[*ast.Ident]types.Object{}, Types: map[ast.Expr]types.TypeAndValue{}}
		if _, err := config.Check("x", files, []*ast.File{file}, info); err != nil {
			t.Fatal(err)
		}
		if _, faults := logLines(files, []*ast.File{file}, info); len(faults) != want {
			t.Errorf("%s: %d faults, want %d: %q", body, len(faults), want, faults)
		}
	}
}

const (
	logPage  = "../../docs/troubleshooting.md"
	logBegin = "<!-- log messages: begin; go test ./internal/archtest -run TestLogTable -update-log-table adds and removes rows -->\n"
	logEnd   = "<!-- log messages: end -->\n"
	logHead  = "| message | level | meaning | remedy |\n|---|---|---|---|\n"
)

var updateLogTable = flag.Bool("update-log-table", false, "write the rows of the table of log messages")

// TestLogTable compares the table of log messages with the source: it lists every WARN and ERROR message, with meaning and remedy.
func TestLogTable(t *testing.T) {
	t.Parallel()
	levels := map[string]string{}
	for _, p := range checked(t) {
		lines, _ := logLines(p.files, p.parsed, p.info)
		for _, l := range lines {
			if l.level == "WARN" || l.level == "ERROR" {
				levels[l.message] = min(l.level, cmp.Or(levels[l.message], l.level)) // ERROR goes first
			}
		}
	}
	data, err := os.ReadFile(logPage)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(data), logBegin)
	old, after, ok2 := strings.Cut(rest, logEnd)
	if !ok || !ok2 {
		t.Fatalf("%s has no table between %q and %q", logPage, logBegin, logEnd)
	}
	table, missing := logTable(old, levels)
	if *updateLogTable {
		if err := os.WriteFile(logPage, []byte(before+logBegin+table+logEnd+after), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if table != old {
		t.Errorf("the table of log messages is not that of the source: run this test with -update-log-table. It should be:\n%s", table)
	}
	for _, m := range missing {
		t.Errorf("%s: %q needs a meaning and a remedy", logPage, m)
	}
}

// logTable returns a table of messages with the meanings and remedies of an older one, and the messages that lack one.
func logTable(old string, levels map[string]string) (table string, missing []string) {
	known := map[string][2]string{}
	for line := range strings.Lines(old) {
		if cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | "); len(cells) == 4 {
			known[strings.Trim(cells[0], " `")] = [2]string{strings.TrimSpace(cells[2]), strings.TrimSpace(cells[3])}
		}
	}
	messages := make([]string, 0, len(levels))
	for m := range levels {
		messages = append(messages, m)
	}
	slices.Sort(messages)
	table = logHead
	for _, m := range messages {
		row := known[m]
		if row[0] == "" || row[1] == "" {
			missing = append(missing, m)
		}
		table += fmt.Sprintf("| `%s` | %s | %s | %s |\n", m, levels[m], row[0], row[1])
	}
	return table, missing
}

// TestLogTableFinds proves that rows that are missing, stale or of another level are found.
func TestLogTableFinds(t *testing.T) {
	t.Parallel()
	const row = "| `disk failed` | ERROR | The disk failed. | Replace it. |\n"
	for name, c := range map[string]struct {
		old     string
		levels  map[string]string
		same    bool
		missing int
	}{
		"same":    {logHead + row, map[string]string{"disk failed": "ERROR"}, true, 0},
		"missing": {logHead, map[string]string{"disk failed": "ERROR"}, false, 1},
		"stale":   {logHead + row, map[string]string{}, false, 0},
		"level":   {logHead + row, map[string]string{"disk failed": "WARN"}, false, 0},
	} {
		if table, missing := logTable(c.old, c.levels); (table == c.old) != c.same || len(missing) != c.missing {
			t.Errorf("%s: got %q, missing %q", name, table, missing)
		}
	}
}
