#!/bin/bash
# fuzz.sh TIME runs every fuzz target of every package for TIME.
set -euo pipefail
cd "$(dirname "$0")/.."

mapfile -t files < <(grep -rl --include='*_test.go' '^func Fuzz' cmd internal test)
mapfile -t dirs < <(printf '%s\n' "${files[@]}" | xargs -n1 dirname | sort -u)
targets=0
for dir in "${dirs[@]}"; do
	listed=$(go test -list '^Fuzz' "./$dir")
	for target in $(grep '^Fuzz' <<<"$listed"); do
		echo "fuzz: $dir $target for $1"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$1" "./$dir"
		targets=$((targets + 1))
	done
done
echo "fuzz: $targets targets found nothing"
