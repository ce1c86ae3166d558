#!/bin/bash
# Builds the server twice, from copies of the tree in two directories, the second time with nothing in the compiler's
# cache, and fails unless both are the same to the bit.
set -euo pipefail
cd "$(dirname "$0")/.."

scratch=$(mktemp -d)
trap 'chmod -R u+w "$scratch"; rm -rf "$scratch"' EXIT

build() { # DIRECTORY
	mkdir -p "$scratch/$1"
	git ls-files -z --cached --others --exclude-standard | xargs -0 tar -c --ignore-failed-read | tar -x -C "$scratch/$1"
	make -C "$scratch/$1" build VERSION="${VERSION:-unknown}"
	mv "$scratch/$1/bin/imageapi-server" "$scratch/server-${1//\//-}"
}
build one
(
	export GOCACHE=$scratch/cache HOME=$scratch TMPDIR=$scratch TZ=Pacific/Apia LC_ALL=C GOMODCACHE=${GOMODCACHE:-$(go env GOMODCACHE)}
	build another/place
)
if ! cmp "$scratch/server-one" "$scratch/server-another-place"; then
	echo "reproducible: two builds of one tree differ" >&2
	exit 1
fi
sha256sum <"$scratch/server-one" | sed 's/ .*/  imageapi-server, twice/'
