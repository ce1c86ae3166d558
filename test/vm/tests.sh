#!/bin/bash
# tests.sh compiles the tests that need root, static, and runs them in the guest as `go test` would: each package in
# its directory, one after the other. TEST is a regular expression for their names (default: all), PKG a list of
# packages (default: all that have such tests), VM_LIMIT the seconds for all together (default 1200). SERVER names another
# server than bin/imageapi-server, TAGS are build tags; with CGO_ENABLED=1 nothing is static. What failed and a
# summary go to the terminal, the record of all tests to bin/report/vm.json, what the kernel said to
# bin/vm/console.log. Several can run at a time.
set -euo pipefail
cd "$(dirname "$0")/../.."
tree=$PWD
limit=${VM_LIMIT:-1200}

mkdir -p bin/vm bin/report
run=$(mktemp -d "$tree/bin/vm/run.XXXXXX") # below the tree, which the guest sees
trap 'rm -rf "$run"' EXIT
cp "${SERVER:-bin/imageapi-server}" "$run/imageapi-server"
cp internal/container/initbin/imageapi-init "$run/"

record=bin/report/vm.json
[[ -z ${TEST:-}${PKG:-} ]] || record=$run/vm.json
packages=${PKG:-$(grep -rlE --include='*_test.go' '/internal/testkit"|/test/harness"' cmd internal test | xargs dirname | sort -u | sed 's,^,./,')}
export CGO_ENABLED=${CGO_ENABLED:-0}
go build -o "$run/test2json" cmd/test2json
{
	# A test that hangs is to say where before the guest is switched off.
	echo "left() { read -r now _ </proc/uptime; echo \$(($limit - 20 - \${now%%.*})); }"
	printf 'export IMAGEAPI_SERVER=%q IMAGEAPI_INIT=%q\nfailed=0\n' "$run/imageapi-server" "$run/imageapi-init"
	# shellcheck disable=SC2086 # a list
	go list -f '{{.ImportPath}} {{.Dir}}' $packages | while read -r package dir; do
		binary=$run/${package//\//_}
		go test -c -tags "${TAGS:-}" -ldflags='-s -w' -o "$binary" "$package"
		[[ -e $binary ]] || continue # it has no tests
		# shellcheck disable=SC2016 # the guest expands it
		printf 'cd %q && %q -t -p %q %q -test.v=test2json -test.paniconexit0 -test.timeout="$(left)s" -test.run=%q || failed=1\n' \
			"$dir" "$run/test2json" "$package" "$binary" "${TEST:-}"
	done
	echo "exit \$failed"
} >"$run/command"
echo "vm: compiled the tests in $SECONDS s"

SECONDS=0
ended=0
bin/tools/gotestsum --format "${TEST_FORMAT:-pkgname}" --format-hide-empty-pkg --jsonfile "$record" \
	--ignore-non-json-output-lines --raw-command -- \
	test/vm/guest.sh -t "$limit" -o "$run" "$run/command" || ended=$?
cp "$run/console.log" bin/vm/
echo "vm: ran them in $SECONDS s, of which the boot took $(sed -n 's/^boot //p' "$run/status") s"
exit "$ended"
