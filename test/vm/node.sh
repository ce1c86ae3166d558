#!/bin/bash
# node.sh boots the server as a node does that has nothing but an initrd, and runs guest/node there.
set -euo pipefail
cd "$(dirname "$0")/../.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
node=$work/node image=$work/image

mkdir -p "$node/bin" "$image"/{bin,dev,proc,sys,tmp,run,etc}
cp bin/imageapi-server "$node/bin/"
for program in curl jq; do # with the libraries that they need
	cp "$(command -v "$program")" "$node/bin/"
	ldd "$(command -v "$program")" | grep -o '/[^ ]*' | xargs cp --parents --dereference --target-directory="$node"
done
cp "$(command -v busybox)" "$image/bin/busybox"
for applet in sh sleep hostname; do
	ln -s busybox "$image/bin/$applet"
done
mksquashfs "$image" "$node/image.squashfs" -quiet -no-progress -all-root >/dev/null

ended=0
test/vm/guest.sh -n -t 120 -a "$node" -o "$work" test/vm/guest/node || ended=$?
echo "vm: ran the node in $SECONDS s, of which the boot took $(sed -n 's/^boot //p' "$work/status") s"
exit "$ended"
