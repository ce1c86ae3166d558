package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// text is a piece of prose and its place.
type text struct {
	place    string
	words    string
	message  bool // of the program: an error, a warning, a log line
	fragment bool // may be a list or a script, whose length does not count
}

var (
	code    = regexp.MustCompile("`[^`]*`")
	link    = regexp.MustCompile(`!?\[([^\]]*)\]\([^)]*\)`)
	comment = regexp.MustCompile(`<!--.*?-->`)
)

// plain takes the markup out of a line of Markdown. Code becomes one word.
func plain(line string) string {
	line = comment.ReplaceAllString(line, "")
	line = code.ReplaceAllString(line, "CODE")
	line = link.ReplaceAllString(line, "$1")
	return strings.NewReplacer("**", "", "*", "", "_", " ").Replace(line)
}

// markdown returns the paragraphs, list items and table cells of a page, without its code.
func markdown(name, page string) []text {
	var texts []text
	var paragraph []string
	begin, fenced := 0, false
	flush := func() {
		if len(paragraph) > 0 {
			texts = append(texts, text{place: fmt.Sprintf("%s:%d", name, begin), words: strings.Join(paragraph, " ")})
		}
		paragraph = nil
	}
	for n, line := range strings.Split(page, "\n") {
		trimmed := strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(trimmed, "```"):
			flush()
			fenced = !fenced
			continue
		case fenced || strings.HasPrefix(line, "    ") && len(paragraph) == 0:
			continue
		case trimmed == "" || strings.HasPrefix(trimmed, "#"):
			flush()
			continue
		case strings.HasPrefix(trimmed, "|"):
			flush()
			for _, cell := range strings.Split(strings.ReplaceAll(trimmed, `\|`, "/"), "|") {
				texts = append(texts, text{place: fmt.Sprintf("%s:%d", name, n+1), words: strings.TrimSpace(plain(cell))})
			}
			continue
		case isItem(trimmed):
			flush()
			trimmed = item.ReplaceAllString(trimmed, "")
		}
		if len(paragraph) == 0 {
			begin = n + 1
		}
		paragraph = append(paragraph, plain(trimmed))
	}
	flush()
	return texts
}

var item = regexp.MustCompile(`^([-*+]|\d+\.)\s+`)

func isItem(line string) bool { return item.MatchString(line) }

// specification returns the descriptions and summaries of swagger.yaml.
func specification(name string, data []byte) ([]text, error) {
	var root yaml.Node
	if err := yaml.Unmarshal(data, &root); err != nil {
		return nil, err
	}
	var texts []text
	var visit func(n *yaml.Node)
	visit = func(n *yaml.Node) {
		if n.Kind == yaml.MappingNode {
			for i := 0; i+1 < len(n.Content); i += 2 {
				key, value := n.Content[i], n.Content[i+1]
				if value.Kind == yaml.ScalarNode && (key.Value == "description" || key.Value == "summary") {
					for _, t := range markdown(name, value.Value) {
						texts = append(texts, text{place: fmt.Sprintf("%s:%d", name, value.Line), words: t.words})
					}
				}
			}
		}
		for _, child := range n.Content {
			visit(child)
		}
	}
	visit(&root)
	return texts, nil
}

// speakers are the functions whose string argument people read, and the place of that argument.
var speakers = map[string]int{
	"errs.New": 1, "fmt.Errorf": 0, "errors.New": 0, "faults.Add": 1,
	"Warn": 0, "Error": 0, "Info": 0, "Debug": 0,
}

// short is the number of words from which on a string outside of speakers counts as a message, too.
const short = 4

// messages returns the strings of a Go file that reach people: errors, log lines, descriptions of flags, and all others of some words. In
// tests only arguments of speakers count, since tests contain bad input on purpose.
func messages(name string) ([]text, error) {
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, name, nil, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	var texts []text
	add := func(at token.Pos, words string) {
		words = verb.ReplaceAllString(words, "VALUE")
		texts = append(texts, text{place: files.Position(at).String(), words: words, message: true})
	}
	spoken := map[ast.Expr]bool{}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			at, ok := speakers[called(n)]
			if !ok || at >= len(n.Args) {
				return true
			}
			if words, ok := literal(n.Args[at]); ok {
				spoken[n.Args[at]] = true
				add(n.Args[at].Pos(), words)
			}
		case *ast.Field:
			if n.Tag != nil {
				if d := description.FindStringSubmatch(n.Tag.Value); d != nil {
					add(n.Tag.Pos(), d[1])
				}
				spoken[n.Tag] = true
			}
		case ast.Expr:
			if spoken[n] {
				return false
			}
			words, ok := literal(n)
			if ok && !strings.HasSuffix(name, "_test.go") && len(strings.Fields(words)) >= short {
				add(n.Pos(), words)
				texts[len(texts)-1].fragment = true
			}
			return !ok
		}
		return true
	})
	return texts, nil
}

var (
	verb        = regexp.MustCompile(`%[-+# 0-9.]*[a-zA-Z]`)
	description = regexp.MustCompile(`description:"([^"]*)"`)
)

// called is the name of a called function: package and name, or the name of a method alone.
func called(call *ast.CallExpr) string {
	selector, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	if from, ok := selector.X.(*ast.Ident); ok {
		if _, known := speakers[from.Name+"."+selector.Sel.Name]; known {
			return from.Name + "." + selector.Sel.Name
		}
	}
	return selector.Sel.Name
}

// literal joins the parts of a constant string.
func literal(e ast.Expr) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		words, err := strconv.Unquote(e.Value)
		return words, err == nil
	case *ast.BinaryExpr:
		left, ok := literal(e.X)
		right, ok2 := literal(e.Y)
		return left + right, ok && ok2
	}
	return "", false
}

// read returns the texts of one file, by the sort of file that it is.
func read(name string) ([]text, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	switch {
	case strings.HasSuffix(name, ".md"):
		return markdown(name, string(data)), nil
	case strings.HasSuffix(name, ".yaml"):
		return specification(name, data)
	case strings.HasSuffix(name, ".go"):
		return messages(name)
	}
	return nil, fmt.Errorf("%s: neither Markdown, YAML nor Go", name)
}
