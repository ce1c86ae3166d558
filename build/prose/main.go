// Command prose holds the project's English against the countable rules of its style guide: pages, descriptions of the specification,
// and the messages in Go code. It prints each sentence that breaks a rule with its place and advice, and fails if there is one.
//
//	prose [-count | -habits] FILE...
//
// With -count it prints the number of findings per file instead, and does not fail. With -habits it counts the habits that have a limit over
// all files together, and the mean length of a sentence.
package main

import (
	"flag"
	"fmt"
	"os"
)

func main() {
	count := flag.Bool("count", false, "print the number of findings per file")
	together := flag.Bool("habits", false, "count the habits that have a limit over all files together")
	flag.Parse()
	if *together {
		os.Exit(limits(flag.Args()))
	}
	found, err := run(flag.Args(), *count)
	if err != nil {
		fmt.Fprintln(os.Stderr, "prose:", err)
		os.Exit(2)
	}
	if found > 0 && !*count {
		fmt.Fprintf(os.Stderr, "prose: %d sentences to rewrite\n", found)
		os.Exit(1)
	}
}

// run checks files and returns the number of findings.
func run(names []string, count bool) (int, error) {
	all := rules()
	total := 0
	for _, name := range names {
		texts, err := read(name)
		if err != nil {
			return total, err
		}
		here := 0
		for _, t := range texts {
			for _, f := range check(all, t) {
				here++
				if !count {
					fmt.Printf("%s: %s\n\t%s\n", f.place, f.advice, f.sentence)
				}
			}
		}
		if count && here > 0 {
			fmt.Printf("%5d %s\n", here, name)
		}
		total += here
	}
	if count {
		fmt.Printf("%5d in all\n", total)
	}
	return total, nil
}

// limits prints the habits of all files together that exceed their limits, and returns the exit status.
func limits(names []string) int {
	var all []text
	for _, name := range names {
		texts, err := read(name)
		if err != nil {
			fmt.Fprintln(os.Stderr, "prose:", err)
			return 2
		}
		all = append(all, texts...)
	}
	over := overLimits(all)
	for _, line := range over {
		fmt.Fprintln(os.Stderr, "prose:", line)
	}
	return min(1, len(over))
}
