#!/bin/bash
# fuzz.sh TIME runs every fuzz target of every package for TIME.
set -euo pipefail
cd "$(dirname "$0")/.."

mapfile -t files < <(grep -rl --include='*_test.go' '^func Fuzz' cmd internal test)
mapfile -t dirs < <(printf '%s\n' "${files[@]}" | xargs -n1 dirname | sort -u)
targets=0
for dir in "${dirs[@]}"; do
	listed=$(go test -list '^Fuzz' "./$dir")
	while read -r target; do
		echo "fuzz: $dir $target for $1"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$1" "./$dir" </dev/null
		targets=$((targets + 1))
	done < <(grep '^Fuzz' <<<"$listed")
done
((targets > 0)) || { echo "fuzz: no targets" >&2; exit 1; }
echo "fuzz: $targets targets found nothing"
