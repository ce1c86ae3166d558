#!/bin/bash
# bench-check.sh OLD [NEW] measures the servers of two commits against each other on this machine, in turns, and fails if NEW
# (default: the commit that is checked out) is slower beyond the noise: by more than SLOWER percent, where the odds that
# chance made the difference are below 1 in 100. IMAGEAPI_BENCH is the number of rounds. Needs root.
set -euo pipefail
cd "$(dirname "$0")/.."
(($# >= 1)) || { echo "bench-check: say what to compare with: make bench-check OLD=v0.2.0" >&2; exit 2; }
old=$1 new=${2:-HEAD} slower=${SLOWER:-10}

work=$(mktemp -d)
finish() {
	for side in old new; do
		[[ ! -e $work/$side ]] || git worktree remove --force "$work/$side"
	done
	rm -rf "$work"
}
trap finish EXIT
for side in old new; do
	git worktree add --quiet --detach "$work/$side" "${!side}"
	make -C "$work/$side" --no-print-directory build VERSION=bench
done

export IMAGEAPI_TEST_FULL=1 IMAGEAPI_BENCH=${IMAGEAPI_BENCH:-30} IMAGEAPI_OLD=$work/old/bin/imageapi-server IMAGEAPI_NEW=$work/new/bin/imageapi-server
go test -count=1 -timeout 1h -run TestCompare ./test/bench
bin/tools/benchstat -alpha 0.01 bin/bench/old.txt bin/bench/new.txt

# What benchstat's table says for programs: name, median, interval, median, interval, change, odds.
if ! bin/tools/benchstat -alpha 0.01 -format csv bin/bench/old.txt bin/bench/new.txt 2>/dev/null | awk -F, -v most="$slower" '
	$6 ~ /^\+/ && $1 != "geomean" { change = $6; gsub(/[+%]/, "", change); rows++; if (change > most) { print "bench-check: " $1 " is slower by " $6 " (" $7 ")"; bad = 1 } }
	{ lines++ }
	END { exit bad || lines < 2 }' >&2; then
	exit 1
fi
echo "bench-check: nothing of $new is slower than $old by more than $slower %"
