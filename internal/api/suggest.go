package api

import "strings"

// suggest returns ": did you mean NAME?" with the candidate that given is most probably a slip of, or nothing.
func suggest(given string, candidates []string) string {
	best, least := "", max(1, len(given)/3)+1
	for _, c := range candidates {
		if d := distance(strings.ToLower(given), strings.ToLower(c)); d < least || d == least && best != "" && c < best {
			best, least = c, d
		}
	}
	if best == "" || len(given) < 3 {
		return ""
	}
	return ": did you mean " + best + "?"
}

// distance is the number of bytes to insert, delete, replace or swap with the next one to make b out of a. Words that are
// longer than any name count as infinitely far.
func distance(a, b string) int {
	const longest = 64
	if len(a) > longest || len(b) > longest {
		return longest
	}
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
