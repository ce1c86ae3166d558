#!/bin/bash
# Adds up the records that test.sh left: one closing line for all runs. A test that ran in several counts once: as
# failed if it ever did, else as passed if it ever did.
set -euo pipefail
cd "$(dirname "$0")/.."

jq --raw-output --slurp '
	map(objects | select(.Test and (.Action | IN("pass", "fail", "skip"))))
	| group_by([.Package, .Test])
	| map(map(.Action) | if any(. == "fail") then "fail" elif any(. == "pass") then "pass" else "skip" end)
	| . as $all
	| def count(what): $all | map(select(. == what)) | length;
	"\(count("pass")) passed, \(count("fail")) failed, \(count("skip")) skipped"
' bin/report/*.json
