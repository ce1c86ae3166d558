#!/bin/bash
# package.sh boots a guest whose PID 1 is systemd and runs guest/package there: it installs, upgrades and removes the Debian
# package, under a container that runs on. The record of its tests is left in bin/report/vm-package.json.
set -euo pipefail
cd "$(dirname "$0")/../.."

shared=bin/vm/package # below the tree, which the guest sees
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rm -rf $shared
mkdir -p $shared bin/report "$work"/vm "$work"/image/{bin,dev,proc,sys,tmp}
for version in 0.0.1 0.0.2; do
	mv "$(build/package.sh $version | grep "deb$")" "$shared/$version.deb"
done
cp "$(command -v busybox)" "$work/image/bin/busybox"
ln -s busybox "$work/image/bin/sh"
mksquashfs "$work/image" $shared/image.squashfs -quiet -no-progress -all-root >/dev/null
rm -r "$work/image"
cp test/vm/guest/systemd "$work/vm/main"
cp test/vm/guest/main "$work/vm/run"

SECONDS=0
ended=0
test/vm/guest.sh -t "${VM_LIMIT:-870}" -a "$work" -o $shared test/vm/guest/package | tee "$work/output" || ended=$?
sed -nE 's/^--- (PASS|FAIL): ([A-Za-z]+).*/{"Action":"\L\1\E","Package":"test\/vm\/package","Test":"\2"}/p' "$work/output" >bin/report/vm-package.json
echo "vm: package: ran it in $SECONDS s, of which the boot took $(sed -n 's/^boot //p' $shared/status) s"
exit "$ended"
