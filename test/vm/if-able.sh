#!/bin/bash
# if-able.sh runs `make vm` where a guest can run. Elsewhere it says why not: with CI=true that is an error, else all of it
# counts as one skipped test.
set -euo pipefail
cd "$(dirname "$0")/../.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo true >"$work/true"
boots() {
	build/deps.sh test/vm/packages && test/vm/image.sh >/dev/null && test/vm/guest.sh -n -t 60 "$work/true"
}
if boots >"$work/log" 2>&1; then
	exec make vm
fi

ended=skip
[[ ${CI:-} != true ]] || ended=fail
mkdir -p bin/report
printf '{"Action":"%s","Package":"test/vm","Test":"TestGuest"}\n' $ended >bin/report/vm.json
echo "vm: ${ended^^}: no guest can run here, so nothing was tested against NFS, iSCSI and Ceph servers:" >&2
sed 's/^/vm:   /' "$work/log" >&2
[[ $ended == skip ]]
