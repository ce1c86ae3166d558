#!/bin/bash
# fuzz.sh TIME runs every fuzz target of every package for TIME.
set -euo pipefail
cd "$(dirname "$0")/.."

grep -rl --include='*_test.go' '^func Fuzz' cmd internal test 2>/dev/null | xargs -r -n1 dirname | sort -u |
	while read -r dir; do
		go test -list '^Fuzz' "./$dir" | grep '^Fuzz' | while read -r target; do
			echo "fuzz: $dir $target for $1"
			go test -run '^$' -fuzz "^$target\$" -fuzztime "$1" "./$dir" </dev/null
		done
	done
