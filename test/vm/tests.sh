#!/bin/bash
# tests.sh [-n NAME] [-t SECONDS] [-s SERVER] [-g TAGS] PACKAGE[=REGEXP | !REGEXP]... compiles the tests of packages and
# runs them in a guest as `go test` would: each package in its directory, one after the other. A regular expression
# chooses tests by their names, or leaves them out.
#
#   -n    leave the record of all tests in bin/report/NAME.json; else it is bin/vm/NAME.json with the name "some"
#   -t    the seconds for all together (default VM_LIMIT, else 1200); a package may take four fifths of it
#   -s    another server than bin/imageapi-server
#   -g    build tags; the tests are then linked with the C libraries, and their packages named with the tags
#
# What failed and a summary go to the terminal, what the guest's kernel said to bin/vm/NAME.log. Several can run at a
# time.
set -euo pipefail
cd "$(dirname "$0")/../.."
tree=$PWD

name=some limit=${VM_LIMIT:-1200} server=bin/imageapi-server tags='' record=bin/vm/some.json
export CGO_ENABLED=0
while getopts n:t:s:g: option; do
	case $option in
	n) name=$OPTARG record=bin/report/$OPTARG.json ;;
	t) limit=$OPTARG ;;
	s) server=$OPTARG ;;
	g) tags=$OPTARG CGO_ENABLED=1 ;;
	*) exit 2 ;;
	esac
done
shift $((OPTIND - 1))

mkdir -p bin/vm bin/report
run=$(mktemp -d "$tree/bin/vm/run.XXXXXX") # below the tree, which the guest sees
trap 'rm -rf "$run"' EXIT
cp "$server" "$run/imageapi-server"
cp bin/imageapi "$run/imageapi"
cp internal/container/initbin/imageapi-init internal/driver/attach/web/keeperbin/imageapi-keeper "$run/"
cp "$(internal/testkit/debian.sh bookworm)" "$run/"
go build -o "$run/test2json" cmd/test2json

compile() { # PACKAGE RUN SKIP: and print the guest's command for it
	local package dir binary
	read -r package dir < <(go list -f '{{.ImportPath}} {{.Dir}}' "$1")
	binary=$run/${package//\//_}
	go test -c -tags "$tags" -ldflags='-s -w' -o "$binary" "$package"
	[[ -e $binary ]] || return 0 # it has no tests
	# No package takes the time of all others, and one that hangs is to say where before the guest is switched off.
	# shellcheck disable=SC2016 # the guest expands it
	printf 'left=$((limit - 20 - $(seconds))); suite %q %q %q $((left < limit * 4 / 5 ? left : limit * 4 / 5)) %q %q || failed=1\n' \
		"$dir" "$binary" "$package${tags:+ ($tags)}" "$2" "$3"
}
{
	printf 'run=%q limit=%q failed=0\n' "$run" "$limit"
	printf 'export IMAGEAPI_SERVER=%q IMAGEAPI_INIT=%q IMAGEAPI_KEEPER=%q IMAGEAPI_DEBIAN=%q IMAGEAPI_TEST_FULL=%q\n' \
		"$run/imageapi-server" "$run/imageapi-init" "$run/imageapi-keeper" "$run" "${IMAGEAPI_TEST_FULL:-}"
	printf '. %q\n' "$tree/test/vm/guest/suite"
	for package; do
		case $package in
		*=*) compile "${package%%=*}" "${package#*=}" '' ;;
		*!*) compile "${package%%!*}" '' "${package#*!}" ;;
		*) compile "$package" '' '' ;;
		esac
	done
	echo "exit \$failed"
} >"$run/command"
echo "vm: $name: compiled the tests in $SECONDS s"

SECONDS=0
ended=0
bin/tools/gotestsum --format "${TEST_FORMAT:-pkgname}" --format-hide-empty-pkg --jsonfile "$record" \
	--ignore-non-json-output-lines --raw-command -- \
	test/vm/guest.sh -t "$limit" -o "$run" "$run/command" || ended=$?
cp "$run/console.log" "bin/vm/$name.log"
echo "vm: $name: ran them in $SECONDS s, of which the boot took $(sed -n 's/^boot //p' "$run/status") s"
((ended != 124)) || echo "vm: $name: they were not done after $limit s" >&2
exit "$ended"
