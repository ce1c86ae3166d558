#!/bin/bash
# Adds up the records that test.sh left: one closing line for all runs. Tests that run twice count twice.
set -euo pipefail
cd "$(dirname "$0")/.."

jq --raw-output --slurp '
	map(select(.Test) | .Action) as $all
	| def count(what): $all | map(select(. == what)) | length;
	"\(count("pass")) passed, \(count("fail")) failed, \(count("skip")) skipped"
' bin/report/*.json
