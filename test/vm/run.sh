#!/bin/bash
# run.sh runs all tests that need a guest, in parts, and tells what each took. The parts run in three guests at a time, since
# most of them wait. With TEST, a regular expression, or PKG, a list of packages, it runs only these, in one guest.
# CEPH_TAGS are the build tags of the server with Ceph's libraries.
set -euo pipefail
cd "$(dirname "$0")/../.."

packages() { # all that have tests which need root
	grep -rlE --include='*_test.go' '/internal/testkit"|/test/harness"' cmd internal test | xargs dirname | sort -u | sed 's,^,./,'
}

if [[ -n ${TEST:-}${PKG:-} ]]; then
	suites=()
	for package in ${PKG:-$(packages)}; do
		suites+=("$package${TEST:+=$TEST}")
	done
	exec test/vm/tests.sh "${suites[@]}"
fi

disks=(./internal/driver/attach/iscsi ./internal/driver/attach/rbd)
nfs=./internal/driver/mount/nfs
servers='^Test(NFS|ISCSI|RBD|Chaos)' # in test/e2e
other=("${disks[@]}" "$nfs" ./test/e2e)
# The drivers' own packages put each of them through the same suite.
[[ ${IMAGEAPI_TEST_FULL:-} ]] || other+=(./internal/driver/drivertest)
# That suite, and many images at a time, have nothing to do with what the server asks the cluster.
asking=./internal/driver/attach/rbd
[[ ${IMAGEAPI_TEST_FULL:-} ]] || asking+='!^Test(Driver|Parallel)'
mapfile -t rest < <(packages | grep -vxF "$(printf '%s\n' "${other[@]}")")

part() { # NAME COMMAND...
	local name=$1 begin=$SECONDS ended=0
	shift
	"$@" || ended=$?
	echo "$name $((SECONDS - begin)) $ended" >>"$times"
}
times=$(mktemp)
trap 'rm -f "$times"' EXIT
part servers test/vm/tests.sh -n vm-servers "${disks[@]}" "./test/e2e=$servers" &
{
	part nfs test/vm/tests.sh -n vm-nfs "$nfs"
	part ceph test/vm/tests.sh -n vm-ceph -s bin/imageapi-server-ceph -g "$CEPH_TAGS" "$asking" ./test/e2e=^TestRBD
	part node test/vm/node.sh
	part services test/vm/services.sh
} &
part local test/vm/tests.sh -n vm-local "${rest[@]}" "./test/e2e!$servers"
wait
echo "vm: all of it took $SECONDS s:"
awk '{printf "vm:   %-8s %4d s%s\n", $1, $2, $3 ? ", FAILED" : ""} $3 {bad = 1} END {exit bad || NR != 6}' "$times"
