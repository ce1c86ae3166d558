// Command apipage writes the page that documents the API: the specification and the program that draws it, in one
// file that asks no server for anything.
//
//	apipage SPECIFICATION REDOC-PACKAGE >index.html
package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"
)

// The page. Its policy forbids every request, so that nothing in the bundle can load fonts, logos or trackers, and every script
// but the two that are named by their hashes; the worker is the bundle's own search.
const (
	html = `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src %s %s; style-src 'unsafe-inline'; img-src data:; font-src data:; worker-src blob:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Image API</title>
<style>
body { margin: 0 }
a[href^="https://redocly.com/"] { display: none !important }
#page td code, #page th code { white-space: nowrap }
</style>
</head>
<body>
<noscript>This page is drawn by a script that it holds; it loads nothing. The same is told by the file swagger.yaml.</noscript>
<div id="page"></div>
<script type="application/json" id="spec">%s</script>
<!-- Drawn by Redoc. Licences:
%s
%s-->
<script>%s</script>
<script>%s</script>
</body>
</html>
`
	start = `
const sans = "system-ui, sans-serif", mono = "ui-monospace, monospace";
Redoc.init(JSON.parse(document.getElementById("spec").textContent), {
  expandResponses: "200,201",
  hideDownloadButtons: true,
  hideHostname: true,
  jsonSamplesExpandLevel: "all",
  nativeScrollbars: true,
  pathInMiddlePanel: true,
  theme: {typography: {fontFamily: sans, headings: {fontFamily: sans}, code: {fontFamily: mono}}},
}, document.getElementById("page"));
`
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "apipage:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	if len(args) != 2 {
		return errors.New("usage: apipage SPECIFICATION REDOC-PACKAGE")
	}
	spec, err := specification(args[0])
	if err != nil {
		return err
	}
	var parts [3][]byte
	for i, name := range []string{"LICENSE", "bundles/redoc.standalone.js.LICENSE.txt", "bundles/redoc.standalone.js"} {
		if parts[i], err = os.ReadFile(filepath.Join(args[1], name)); err != nil {
			return err
		}
	}
	bundle := strings.NewReplacer(
		"</script", `<\/script`, // would end the script element
		"https://cdn.redoc.ly/redoc/logo-mini.svg", "data:,", // all that it would fetch
	).Replace(string(parts[2]))

	page := bufio.NewWriter(out)
	fmt.Fprintf(page, html, hash(bundle), hash(start), spec, parts[0], parts[1], bundle, start)
	return page.Flush()
}

// hash names a script in a Content-Security-Policy.
func hash(script string) string {
	sum := sha256.Sum256([]byte(script))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// specification returns the YAML file at path as JSON, in the same order.
func specification(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var document yaml.Node
	if err := yaml.Unmarshal(data, &document); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(document.Content) != 1 {
		return nil, fmt.Errorf("read %s: the file is empty", path)
	}
	var out bytes.Buffer
	if err := write(&out, document.Content[0]); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return out.Bytes(), nil
}

// write writes a node as JSON. The standard library would sort the keys, and so the fields in the page.
func write(out *bytes.Buffer, node *yaml.Node) error {
	switch node.Kind {
	case yaml.MappingNode:
		return writeList(out, "{}", len(node.Content)/2, func(i int) error {
			key, err := json.Marshal(node.Content[2*i].Value)
			if err != nil {
				return err
			}
			out.Write(key)
			out.WriteByte(':')
			return write(out, node.Content[2*i+1])
		})
	case yaml.SequenceNode:
		return writeList(out, "[]", len(node.Content), func(i int) error { return write(out, node.Content[i]) })
	case yaml.ScalarNode:
		var value any
		if err := node.Decode(&value); err != nil {
			return err
		}
		text, err := json.Marshal(value) // writes "<" as \u003c, so that no text can end the script element
		out.Write(text)
		return err
	default:
		return fmt.Errorf("line %d: aliases are not supported", node.Line)
	}
}

func writeList(out *bytes.Buffer, brackets string, n int, item func(i int) error) error {
	out.WriteByte(brackets[0])
	for i := range n {
		if i > 0 {
			out.WriteByte(',')
		}
		if err := item(i); err != nil {
			return err
		}
	}
	out.WriteByte(brackets[1])
	return nil
}
