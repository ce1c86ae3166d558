#!/bin/bash
# initramfs.sh boots a node whose init is that of docs/examples/initramfs, and runs guest/initramfs there.
set -euo pipefail
cd "$(dirname "$0")/../.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
node=$work/node
mkdir -p "$node"/{bin,etc/start.d,etc/stop.d,vm} "$work"/image/{bin,dev,proc,sys,tmp}
cp bin/imageapi-server bin/imageapi "$node/bin/"
cp docs/examples/initramfs/init "$node/init"
install test/vm/guest/initramfs-start "$node/etc/start.d/test"
install test/vm/guest/initramfs-stop "$node/etc/stop.d/test"
cp "$(command -v busybox)" "$work/image/bin/busybox"
ln -s busybox "$work/image/bin/sh"
mksquashfs "$work/image" "$node/image.squashfs" -quiet -no-progress -all-root >/dev/null

ended=0
test/vm/guest.sh -n -t 200 -a "$node" -o "$work" test/vm/guest/initramfs || ended=$?
((ended == 0)) || tail -n 30 "$work/console.log"
echo "vm: ran the initramfs in $SECONDS s, of which the boot took $(sed -n 's/^boot //p' "$work/status") s"
exit "$ended"
