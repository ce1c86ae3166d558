#!/bin/bash
# Makes models, restapi, client, the server's rules and the OpenAPI 3 document from swagger.yaml; with --check it only compares them with the files in the tree.
#
# The generator runs in a scratch directory with a fixed name, because it writes the name of its target's
# directory into a comment: a checkout may be called anything.
set -euo pipefail
cd "$(dirname "$0")/.."

trees=(models restapi client)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

mkdir "$scratch/imageapi"
cp go.mod swagger.yaml "$scratch/imageapi"
swagger=$PWD/bin/tools/swagger
bin/tools/openapi <swagger.yaml >"$scratch/openapi.json"
(
	cd "$scratch/imageapi"
	common=(--quiet --spec=swagger.yaml --target=. --name=imageapi)
	"$swagger" generate server "${common[@]}" --exclude-main --flag-strategy=go-flags --return-errors
	"$swagger" generate client "${common[@]}"
	gofmt -w "${trees[@]}"
)

if [[ ${1:-} == --check ]]; then
	for tree in "${trees[@]}"; do
		if ! diff --recursive --brief "$tree" "$scratch/imageapi/$tree"; then
			echo "generate-check: $tree differs from what swagger.yaml gives; run 'make generate' and commit" >&2
			exit 1
		fi
	done
	if ! go run ./build/rules | diff --brief internal/api/specification.json -; then
		echo "generate-check: internal/api/specification.json differs from what swagger.yaml gives; run 'make generate' and commit" >&2
		exit 1
	fi
	if ! diff --brief docs/api/openapi.json "$scratch/openapi.json"; then
		echo "generate-check: docs/api/openapi.json differs from what swagger.yaml gives; run 'make generate' and commit" >&2
		exit 1
	fi
	exit 0
fi
rm -rf "${trees[@]}"
for tree in "${trees[@]}"; do
	cp -r "$scratch/imageapi/$tree" .
done
go run ./build/rules >"$scratch/specification.json"
cp "$scratch/specification.json" internal/api/specification.json
cp "$scratch/openapi.json" docs/api/openapi.json
