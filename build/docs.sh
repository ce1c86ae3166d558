#!/bin/bash
# Makes docs/api/index.html from swagger.yaml: one file with everything in it, that works without a network. It is
# drawn by Redoc (MIT licence), whose bundle comes from the npm registry in this one version.
set -euo pipefail
cd "$(dirname "$0")/.."

version=2.5.4
sum=44922df4d0eb45c1b066c09ec251e6bd9bd7ded16bc69e87613337b9d911a56e

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
npm pack --silent --pack-destination "$scratch" "redoc@$version" >/dev/null
echo "$sum  $scratch/redoc-$version.tgz" | sha256sum --check --quiet
tar -x -f "$scratch/redoc-$version.tgz" -C "$scratch"

mkdir -p docs/api
go run ./build/apipage swagger.yaml "$scratch/package" >"$scratch/index.html"
mv "$scratch/index.html" docs/api/index.html
chmod 644 docs/api/index.html
