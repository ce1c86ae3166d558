package main

import (
	"regexp"
	"strings"
)

// rule is one habit to avoid and the words to write in its place.
type rule struct {
	pattern *regexp.Regexp
	advice  string
	message bool // applies to the first sentence of messages only
}

// rules are the countable habits. A pattern that finds good sentences, too, does not belong here.
func rules() []rule {
	all := []struct {
		pattern, advice string
		message         bool
	}{
		{`^(What|Who|Whoever|Whatever)\b[^?]*$`, `name the noun: "objects created earlier", "clients that may connect"`, false},
		{`(?i)\b(with|of|for|by|to|from|and|is|are|than|all|after|before|in|on|take away|see|tell|tells|show|shows|know|knows|say|says) what\b`, `name the noun in place of "what"`, false},
		{`(?i)\bwhat (is|are|was|were|it|they|there|has|have|holds|needs|runs|you|one|else|we|must|may|can|comes|of)\b`, `name the noun in place of "what"`, false},
		{`(?i)\b(somebody|nobody|whoever|someone else|whosoever)\b`, `write "you", or name the client, process or server`, false},
		{`(?i)\banew\b`, `write "again"`, false},
		{`(?i)\bfor ever\b`, `write "forever"`, false},
		{`(?i)\b(is|are) told\b|\btold of\b`, `write "receives", "is notified"`, false},
		{`(?i)\b(the (server|daemon|page|table|answer|error|message|list|program|object|field|header|log)s?|it|which|that|they|this) (tells?|told|says?|said)\b`, `write "returns", "shows", "prints", "lists", "reports" or "contains"`, false},
		{`\b(is|are|was|be|stays|remains) (a |an )?[45]\d\d\b`, `write "returns 409"`, false},
		{`(?i)\bthere (is|are) (nothing|nobody|none)\b`, `name the objects: "No containers, mounts or attachments."`, false},
		{`(?i)\b(goes|go|went) (on|with|away|behind)\b`, `write "continues", "is deleted with", "ends"`, false},
		{`(?i)\b(is|are) (not )?to be (found|had)\b`, `write "is not available", "not found"`, false},
		{`(?i)\bfalls? behind\b`, `name the event: "journal write failed"`, false},
		{`(?i)\b(take|takes|taken|taking) (it |them |all |everything |that )?(away|down)\b`, `write "delete", "unmount", "tear down"`, false},
		{`(?i)\bof one of these\b`, `write "signed by one of these"`, false},
		{`(?i)\bshall\b`, `write "must" or "should"`, false},
		{`(?i)\bof (its|their|our|your) own(\W|$)\W*(which|that|and|or|as|in|on|at|to|by|is|are|has|have|for|from|with|below|\W|$)`, `write "its own"`, false},
		{`(?i)\b(mend|mended|mends)\b`, `write "fix" or "repair"`, false},
		{`(?i)\b(ca|do|does|is|are|was|were|wo|would|did|has|have|should)n['’]t\b`, `write both words: "cannot", "do not"`, false},
		{`(?i)^it\b`, `name the subject of the message`, true},
	}
	var out []rule
	for _, r := range all {
		out = append(out, rule{regexp.MustCompile(r.pattern), r.advice, r.message})
	}
	return out
}

// longest is how many words a sentence may have.
const longest = 30

// finding is one sentence that breaks a rule.
type finding struct {
	place, sentence, advice string
}

// check holds a text against the rules, sentence by sentence.
func check(rules []rule, t text) []finding {
	var found []finding
	for i, s := range sentences(t.words) {
		for _, r := range rules {
			if (!r.message || t.message && i == 0) && !strings.HasSuffix(s, "?") && r.pattern.MatchString(s) {
				found = append(found, finding{t.place, s, r.advice})
			}
		}
		if words := len(strings.Fields(s)); words > longest && !t.fragment {
			found = append(found, finding{t.place, s, "shorten the sentence: one idea each"})
		}
	}
	return found
}

var (
	end        = regexp.MustCompile(`([.!?:;])["')]*\s+`)
	abbreviate = regexp.MustCompile(`\b(e\.g|i\.e|etc|vs|Inc|No)\.$`)
)

// sentences splits a text. A colon and a semicolon end a sentence, too: each side must be readable alone.
func sentences(words string) []string {
	words = strings.Join(strings.Fields(words), " ")
	var out []string
	start := 0
	for _, at := range end.FindAllStringIndex(words, -1) {
		if abbreviate.MatchString(words[start : at[0]+1]) {
			continue
		}
		out = append(out, strings.TrimSpace(words[start:at[1]]))
		start = at[1]
	}
	if rest := strings.TrimSpace(words[start:]); rest != "" {
		out = append(out, rest)
	}
	return out
}
