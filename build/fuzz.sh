#!/bin/bash
# fuzz.sh TIME runs every fuzz target of every package for TIME.
set -euo pipefail
cd "$(dirname "$0")/.."

# fuzz TARGET TIME PACKAGE. The end of the time is sometimes reported as a failure by the fuzzer of Go: that is no finding, and
# the target runs once more.
fuzz() {
	local log status=0
	log=$(mktemp)
	go test -run '^$' -fuzz "^$1\$" -fuzztime "$2" "$3" </dev/null 2>&1 | tee "$log" || status=$?
	if ((status != 0)) && grep -q '^ *context deadline exceeded$' "$log" && ! grep -q 'Failing input' "$log"; then
		status=0
		go test -run '^$' -fuzz "^$1\$" -fuzztime "$2" "$3" </dev/null || status=$?
	fi
	rm "$log"
	return "$status"
}

mapfile -t files < <(grep -rl --include='*_test.go' '^func Fuzz' cmd internal test)
mapfile -t dirs < <(printf '%s\n' "${files[@]}" | xargs -n1 dirname | sort -u)
targets=0
for dir in "${dirs[@]}"; do
	listed=$(go test -list '^Fuzz' "./$dir")
	while read -r target; do
		echo "fuzz: $dir $target for $1"
		fuzz "$target" "$1" "./$dir"
		targets=$((targets + 1))
	done < <(grep '^Fuzz' <<<"$listed")
done
((targets > 0)) || { echo "fuzz: no targets" >&2; exit 1; }
echo "fuzz: $targets targets found nothing"
