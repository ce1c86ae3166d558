package cli

import (
	"fmt"
	"io"
	"strconv"
	"strings"
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

// write writes t, each line cut to width columns unless width is 0.
func (t *table) write(w io.Writer, width int) {
	widths := make([]int, len(t.rows[0]))
	for _, row := range t.rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, row := range t.rows {
		var line strings.Builder
		for i, cell := range row {
			line.WriteString(cell)
			if i < len(row)-1 {
				line.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2))
			}
		}
		_, _ = fmt.Fprintln(w, cut(line.String(), width))
	}
}

// cut shortens a line to width columns; 0 means any width.
func cut(line string, width int) string {
	if width == 0 || utf8.RuneCountInString(line) <= width {
		return line
	}
	return string([]rune(line)[:width-1]) + "…"
}

// age tells how long ago something was, in its largest unit.
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

// size tells a number of bytes.
func size(n *int64) string {
	if n == nil {
		return ""
	}
	return units.BytesSize(float64(*n))
}

func number[T ~int64](n T) string { return strconv.FormatInt(int64(n), 10) }

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
