#!/bin/bash
# All static checks. Each says what is wrong and where; the first kind that finds something ends the run.
set -euo pipefail
cd "$(dirname "$0")/.."

unformatted=$(gofmt -l build cmd internal models restapi client test 2>/dev/null)
if [[ -n $unformatted ]]; then
	printf 'lint: not formatted, run gofmt -w on:\n%s\n' "$unformatted" >&2
	exit 1
fi

# The generated trees compile, and that is all that can be asked of them.
listed=$(go list ./...)
mapfile -t packages < <(grep -Ev '/imageapi/(models|restapi|client)(/|$)' <<<"$listed")
go vet "${packages[@]}"
bin/tools/staticcheck -checks 'all,-ST1000' "${packages[@]}"
bin/tools/errcheck -ignoretests -exclude build/errcheck.txt "${packages[@]}"
go test -count=1 ./internal/archtest
(cd test/browser && go vet ./... && ../../bin/tools/staticcheck -checks 'all,-ST1000' ./...) # a module of its own

mapfile -t scripts < <(git ls-files --cached --others --exclude-standard | xargs grep -lE '^#!/bin/(ba)?sh' --)
shellcheck --external-sources "${scripts[@]}"

# The English of pages, specification, messages and tests, sentence by sentence, and the habits of all pages together.
mapfile -t written < <(git ls-files --cached --others --exclude-standard -- '*.md' swagger.yaml 'build/*.go' 'cmd/*.go' 'internal/*.go' 'test/*.go' |
	grep -vE '^build/(apipage|prose)/')
go run ./build/prose "${written[@]}"
mapfile -t pages < <(git ls-files --cached --others --exclude-standard -- '*.md' swagger.yaml | grep -v '^docs/adr/')
go run ./build/prose -habits "${pages[@]}"
