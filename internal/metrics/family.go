package metrics

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// family is all series of one name. It is safe for concurrent use.
type family struct {
	name, help string
	kind       kind
	labels     []string  // in the order in which they are written
	bounds     []float64 // of a histogram: the upper ends of its buckets

	mu     sync.Mutex
	series map[string]*series // by their labels, as they are written
}

// kind is what Prometheus calls the type of a family.
type kind string

const (
	counter   kind = "counter"
	gauge     kind = "gauge"
	histogram kind = "histogram"
	summary   kind = "summary"
)

type series struct {
	value  float64  // of a histogram, the sum
	counts []uint64 // of a histogram, by bucket; the last one is for what is above all bounds
}

// add counts something.
func (f *family) add(value float64, labels ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.of(labels)
	s.value += value
	if f.kind == histogram {
		bucket, _ := slices.BinarySearch(f.bounds, value)
		s.counts[bucket]++
	}
}

// of returns the series with labels; f.mu is held.
func (f *family) of(labels []string) *series {
	key := pairs(f.labels, labels)
	s := f.series[key]
	if s == nil {
		s = &series{}
		if f.kind == histogram {
			s.counts = make([]uint64, len(f.bounds)+1)
		}
		if f.series == nil {
			f.series = map[string]*series{}
		}
		f.series[key] = s
	}
	return s
}

// write writes the family as Prometheus reads it (text format, version 0.0.4). One without series is left out.
func (f *family) write(w io.Writer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.series) == 0 {
		return
	}
	header(w, f.name, f.help, f.kind)
	for _, labels := range slices.Sorted(maps.Keys(f.series)) {
		s := f.series[labels]
		if f.kind != histogram {
			sample(w, f.name, labels, s.value)
			continue
		}
		var count uint64
		for i, n := range s.counts {
			count += n
			bound := "+Inf"
			if i < len(f.bounds) {
				bound = number(f.bounds[i])
			}
			sample(w, f.name+"_bucket", join(labels, pairs([]string{"le"}, []string{bound})), float64(count))
		}
		sample(w, f.name+"_sum", labels, s.value)
		sample(w, f.name+"_count", labels, float64(count))
	}
}

// header and sample write to a buffer, which takes all.

func header(w io.Writer, name, help string, kind kind) {
	_, _ = fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

func sample(w io.Writer, name, labels string, value float64) {
	if labels != "" {
		labels = "{" + labels + "}"
	}
	_, _ = fmt.Fprintf(w, "%s%s %s\n", name, labels, number(value))
}

func number(value float64) string { return strconv.FormatFloat(value, 'g', -1, 64) }

// pairs writes labels with their values.
func pairs(names, values []string) string {
	escape := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)
	all := make([]string, len(names))
	for i, name := range names {
		all[i] = name + `="` + escape.Replace(values[i]) + `"`
	}
	return strings.Join(all, ",")
}

func join(labels, more string) string {
	if labels == "" {
		return more
	}
	return labels + "," + more
}
