#!/bin/bash
# modules.sh [DIRECTORY...] downloads every module of each go.mod into an empty module cache, and fails if the proxy refuses one.
# A cache that other work has filled hides a version that a fresh machine cannot download. Default: all go.mod files of the tree.
set -euo pipefail
cd "$(dirname "$0")/.."

if (($# == 0)); then
	mapfile -t files < <(git ls-files --cached --others --exclude-standard -- go.mod '*/go.mod')
	set -- "${files[@]%go.mod}"
fi
GOMODCACHE=$(mktemp -d)
export GOMODCACHE GOFLAGS=-mod=readonly
trap 'go clean -modcache' EXIT

failed=0
for directory; do
	if ! why=$(cd "./$directory" && go mod download 2>&1); then
		printf 'modules: download failed: %sgo.mod: %s\n' "$directory" "$why" >&2
		failed=1
	fi
done
exit $failed
