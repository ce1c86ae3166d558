#!/bin/bash
# test.sh NAME ARGUMENTS... runs go test with ARGUMENTS. It prints what failed and a summary, and leaves the
# record for tally.sh in bin/report/NAME.json.
set -euo pipefail
cd "$(dirname "$0")/.."

name=$1
shift
mkdir -p bin/report
hide=()
[[ " $* " == *" -short "* ]] && hide=(--hide-summary=skipped) # those are run by another target
exec bin/tools/gotestsum --format "${TEST_FORMAT:-pkgname}" --format-hide-empty-pkg "${hide[@]}" \
	--jsonfile "bin/report/$name.json" -- "$@"
