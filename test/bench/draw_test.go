package bench

import (
	"fmt"
	"math"
	"strings"
)

// chart is a diagram with logarithmic axes.
type chart struct {
	title, x string
	lines    []curve
}

type curve struct {
	name   string
	points []point
}

// point is a time, in milliseconds, at a number of things.
type point struct{ x, y float64 }

const (
	chartWidth, chartHeight = 300, 300
	marginLeft, marginTop   = 50, 30
	plotWidth, plotHeight   = 230, 170
)

var colours = []string{"#1f5fa8", "#b3471d", "#2d7d3f", "#7a3d91"}

// draw puts charts beside each other, as SVG.
func draw(charts []chart) string {
	var out strings.Builder
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">`+"\n", chartWidth*len(charts), chartHeight)
	fmt.Fprintf(&out, `<rect width="%d" height="%d" fill="white"/>`+"\n", chartWidth*len(charts), chartHeight)
	for i, c := range charts {
		fmt.Fprintf(&out, `<g transform="translate(%d 0)">`+"\n", i*chartWidth)
		c.draw(&out)
		out.WriteString("</g>\n")
	}
	out.WriteString("</svg>\n")
	return out.String()
}

func (c chart) draw(out *strings.Builder) {
	x, y := c.scale(func(p point) float64 { return p.x }), c.scale(func(p point) float64 { return p.y })
	text := func(px, py float64, anchor, s string) {
		fmt.Fprintf(out, `<text x="%.0f" y="%.0f" text-anchor="%s">%s</text>`+"\n", px, py, anchor, s)
	}
	text(marginLeft, 18, "start", c.title)
	fmt.Fprintf(out, `<rect x="%d" y="%d" width="%d" height="%d" fill="none" stroke="#888"/>`+"\n", marginLeft, marginTop, plotWidth, plotHeight)
	left := func(v float64) float64 { return marginLeft + plotWidth*x.at(v) }
	top := func(v float64) float64 { return marginTop + plotHeight*(1-y.at(v)) }
	for _, tick := range y.ticks() {
		fmt.Fprintf(out, `<path d="M%d %.1fh%d" stroke="#ddd"/>`+"\n", marginLeft, top(tick), plotWidth)
		text(marginLeft-4, top(tick)+4, "end", fmt.Sprintf("%g ms", tick))
	}
	if len(c.lines) > 0 {
		for _, p := range c.lines[0].points {
			text(left(p.x), marginTop+plotHeight+14, "middle", fmt.Sprintf("%g", p.x))
		}
	}
	text(marginLeft+plotWidth/2, marginTop+plotHeight+28, "middle", c.x)
	for i, line := range c.lines {
		colour := colours[i%len(colours)]
		var path strings.Builder
		for j, p := range line.points {
			path.WriteString("ML"[min(j, 1) : min(j, 1)+1])
			fmt.Fprintf(&path, "%.1f %.1f", left(p.x), top(p.y))
			fmt.Fprintf(out, `<circle cx="%.1f" cy="%.1f" r="2.5" fill="%s"/>`+"\n", left(p.x), top(p.y), colour)
		}
		fmt.Fprintf(out, `<path d="%s" fill="none" stroke="%s"/>`+"\n", path.String(), colour)
		below := float64(marginTop + plotHeight + 46 + 14*i)
		fmt.Fprintf(out, `<path d="M%d %.0fh16" stroke="%s"/>`+"\n", marginLeft, below-4, colour)
		text(marginLeft+20, below, "start", line.name)
	}
}

// scale is a logarithmic axis.
type scale struct{ least, most float64 }

// scale fits the axis of a value to the points: that of times goes from a power of ten to another one.
func (c chart) scale(value func(point) float64) scale {
	s := scale{math.Inf(1), math.Inf(-1)}
	for _, line := range c.lines {
		for _, p := range line.points {
			s.least, s.most = min(s.least, value(p)), max(s.most, value(p))
		}
	}
	if value(point{x: 1, y: 2}) == 2 {
		s.least, s.most = math.Pow(10, math.Floor(math.Log10(s.least))), math.Pow(10, math.Ceil(math.Log10(s.most)))
	}
	return s
}

// at is where on the axis a value is, from 0 to 1.
func (s scale) at(v float64) float64 {
	if s.most <= s.least {
		return 0.5
	}
	return math.Log(v/s.least) / math.Log(s.most/s.least)
}

func (s scale) ticks() (all []float64) {
	for v := s.least; v <= s.most*1.01; v *= 10 {
		all = append(all, v)
	}
	return all
}
