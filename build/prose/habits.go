package main

import (
	"fmt"
	"regexp"
	"strings"
)

// habit is a word or form whose number in all pages together has a limit.
type habit struct {
	name    string
	pattern *regexp.Regexp
	limit   int
	least   bool // the limit is a minimum
}

// habits returns the counted habits. The limits are a twentieth of the numbers of the first count, and a minimum for "you".
func habits() []habit {
	return []habit{
		{"what", regexp.MustCompile(`(?i)\bwhat\b`), 26, false},
		{"sentences that begin with What", regexp.MustCompile(`(?:^|[.!?:;]\s+)What\b`), 8, false},
		{"tell and told", regexp.MustCompile(`(?i)\b(tells?|told)\b`), 7, false},
		{"somebody, nobody and whoever", regexp.MustCompile(`(?i)\b(somebody|nobody|whoever|someone)\b`), 4, false},
		{"you", regexp.MustCompile(`(?i)\byou\b`), 400, true},
	}
}

// meanLimit is the highest mean number of words in a sentence of a page.
const meanLimit = 16.0

// full ends a sentence for the mean. In contrast to the rules, a colon does not.
var full = regexp.MustCompile(`[.!?]["')]*(\s+|$)`)

// overLimits counts the habits in texts and returns a line for each that exceeds its limit.
func overLimits(texts []text) []string {
	var over []string
	for _, h := range habits() {
		n := 0
		for _, t := range texts {
			n += len(h.pattern.FindAllString(t.words, -1))
		}
		if h.least && n < h.limit || !h.least && n > h.limit {
			over = append(over, fmt.Sprintf("%s: %d, the limit is %d", h.name, n, h.limit))
		}
	}
	if mean := meanLength(texts); mean > meanLimit {
		over = append(over, fmt.Sprintf("mean length of a sentence: %.1f words, the limit is %.0f", mean, meanLimit))
	}
	return over
}

// meanLength is the mean number of words of the sentences in texts. Fragments, such as most cells of a table, do not count.
func meanLength(texts []text) float64 {
	words, sentences := 0, 0
	for _, t := range texts {
		start := 0
		for _, at := range full.FindAllStringIndex(t.words, -1) {
			if abbreviate.MatchString(t.words[start : at[0]+1]) {
				continue
			}
			words += len(strings.Fields(t.words[start:at[1]]))
			sentences++
			start = at[1]
		}
	}
	if sentences == 0 {
		return 0
	}
	return float64(words) / float64(sentences)
}
