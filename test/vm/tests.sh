#!/bin/bash
# tests.sh compiles the tests that need root, static, and runs them in the guest as `go test` would: each package in
# its directory, with a time limit, none with the result of an earlier run. TEST is a regular expression for their
# names (default: all), PKG a list of packages (default: all that have such tests). What failed and a summary go to
# the terminal, the record to bin/report/vm.json.
set -euo pipefail
cd "$(dirname "$0")/../.."
tree=$PWD
limit=${VM_LIMIT:-900} # seconds for all tests together

packages=${PKG:-$(grep -rlE --include='*_test.go' 'testkit\.(Root|Need|Guest)\(|/test/harness"' cmd internal test | xargs dirname | sort -u | sed 's,^,./,')}
rm -rf bin/vm/tests
mkdir -p bin/vm/tests bin/report
export CGO_ENABLED=0
go build -o bin/vm/test2json cmd/test2json
{
	# A test that hangs is to say where before the guest is switched off.
	echo "left() { read -r now _ </proc/uptime; echo \$(($limit - 20 - \${now%%.*})); }"
	printf 'export IMAGEAPI_SERVER=%q IMAGEAPI_INIT=%q\nfailed=0\n' \
		"$tree/bin/imageapi-server" "$tree/internal/container/initbin/imageapi-init"
	# shellcheck disable=SC2086 # a list
	go list -f '{{.ImportPath}} {{.Dir}}' $packages | while read -r package dir; do
		binary=$tree/bin/vm/tests/${package//\//_}
		go test -c -ldflags='-s -w' -o "$binary" "$package"
		[[ -e $binary ]] || continue # it has no tests
		# shellcheck disable=SC2016 # the guest expands it
		printf 'cd %q && %q -t -p %q %q -test.v=test2json -test.paniconexit0 -test.timeout="$(left)s" -test.run=%q || failed=1\n' \
			"$dir" "$tree/bin/vm/test2json" "$package" "$binary" "${TEST:-}"
	done
	echo "exit \$failed"
} >bin/vm/command
echo "vm: compiled the tests in $SECONDS s"

SECONDS=0
ended=0
bin/tools/gotestsum --format "${TEST_FORMAT:-pkgname}" --format-hide-empty-pkg --jsonfile bin/report/vm.json \
	--ignore-non-json-output-lines --raw-command -- test/vm/guest.sh -t "$limit" bin/vm/command || ended=$?
echo "vm: ran them in $SECONDS s, of which the boot took $(sed -n 's/^boot //p' bin/vm/status) s"
exit "$ended"
