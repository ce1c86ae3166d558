package cli

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/docker/go-units"
	"github.com/go-openapi/strfmt"

	"github.com/kraken-hpc/imageapi/internal/printable"
)

// table is rows of cells in columns as wide as needed.
type table struct {
	rows [][]string // the first has the headings
}

func newTable(headings ...string) *table { return &table{[][]string{headings}} }

func (t *table) add(cells ...string) {
	for i, cell := range cells {
		cells[i] = printable.Text(cell)
		if cells[i] == "" {
			cells[i] = "-"
		}
	}
	t.rows = append(t.rows, cells)
}

// table writes a table. On a terminal it cuts each line to the width, except for --output wide.
func (a *app) table(t *table) {
	var out bytes.Buffer
	columns := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	for _, row := range t.rows {
		_, _ = fmt.Fprintln(columns, strings.Join(row, "\t"))
	}
	_ = columns.Flush() // a buffer takes everything
	width := a.outWidth
	if a.format.kind == formatWide {
		width = 0
	}
	for line := range strings.Lines(out.String()) {
		a.printf("%s\n", cut(strings.TrimSuffix(line, "\n"), width))
	}
}

// cut shortens a line to width columns; 0 means any width.
func cut(line string, width int) string {
	if width == 0 || utf8.RuneCountInString(line) <= width {
		return line
	}
	return string([]rune(line)[:width-1]) + "…"
}

// age returns how long ago something was, in its largest unit.
func age(now time.Time, t *strfmt.DateTime) string {
	if t == nil {
		return ""
	}
	d := max(now.Sub(time.Time(*t)), 0)
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dd", d/(24*time.Hour))
}

// size returns a number of bytes with its unit.
func size(n *int64) string {
	if n == nil {
		return ""
	}
	return units.BytesSize(float64(*n))
}

func number[T ~int64](n T) string { return strconv.FormatInt(int64(n), 10) }

// nonzero returns a number, or nothing for 0.
func nonzero(n int64) string {
	if n == 0 {
		return ""
	}
	return number(n)
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
