#!/bin/bash
# Makes docs/site.zip of the Markdown pages: a static site that needs no network, built by VitePress (MIT licence), which comes
# from the npm registry in the versions of build/site/package-lock.json.
set -euo pipefail
cd "$(dirname "$0")/.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
go run ./build/site stage "$scratch/pages"
cp build/site/package.json build/site/package-lock.json "$scratch"
mkdir -p "$scratch/pages/.vitepress/theme"
cp build/site/config.mjs "$scratch/pages/.vitepress/"
cp build/site/theme/* "$scratch/pages/.vitepress/theme/"
(
  cd "$scratch"
  npm ci --silent --no-audit --no-fund
  npx vitepress build pages --outDir "$scratch/site"
)
go run ./build/site pack "$scratch/site" docs/site.zip
