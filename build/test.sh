#!/bin/bash
# test.sh NAME ARGUMENTS... runs go test with ARGUMENTS. It prints what failed and a summary, and leaves the
# record for tally.sh in bin/report/NAME.json.
set -euo pipefail
cd "$(dirname "$0")/.."

name=$1
shift
mkdir -p bin/report
exec bin/tools/gotestsum --format "${TEST_FORMAT:-pkgname-and-test-fails}" --format-hide-empty-pkg --jsonfile "bin/report/$name.json" -- "$@"
