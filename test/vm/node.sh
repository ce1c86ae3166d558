#!/bin/bash
# node.sh boots the server as a node does that has nothing but an initrd, and runs guest/node there. A second guest at the
# same time has the servers that it needs, those of guest/servers; a Unix socket joins the two.
set -euo pipefail
cd "$(dirname "$0")/../.."

work=$(mktemp -d)
guests=()
# shellcheck disable=SC2317 # by trap
stop() {
	for guest in "${guests[@]}"; do
		kill -- "-$guest" 2>/dev/null || : # with its QEMU
	done
	rm -rf "$work"
}
trap stop EXIT

node=$work/node servers=$work/servers
mkdir -p "$node/bin" "$servers"/vm/image/{bin,dev,proc,sys,tmp,run,etc} "$work"/out.{node,servers}
cp bin/imageapi-server "$node/bin/"
for program in curl jq; do # with the libraries that they need
	cp "$(command -v "$program")" "$node/bin/"
	ldd "$(command -v "$program")" | grep -o '/[^ ]*' | xargs cp --parents --dereference --target-directory="$node"
done
cp "$(command -v busybox)" "$servers/vm/image/bin/busybox"
for applet in sh sleep hostname cat; do
	ln -s busybox "$servers/vm/image/bin/$applet"
done
mksquashfs "$servers/vm/image" "$node/image.squashfs" -quiet -no-progress -all-root >/dev/null
cp "$(internal/testkit/debian.sh bookworm)" "$node/debian.squashfs"

boot() { # NAME NUMBER WIRE OPTION...: run guest/NAME in a guest, in the background, with a wire to the other one
	local name=$1 number=$2 wire=$3
	shift 3
	setsid test/vm/guest.sh "$@" -t 300 -a "$work/$name" -o "$work/out.$name" "test/vm/guest/$name" \
		-netdev "stream,id=wire,addr.type=unix,addr.path=$work/wire,server=$wire" \
		-device "virtio-net-pci,netdev=wire,mac=52:54:00:00:00:$number,romfile=" &
	guests+=($!)
}
boot servers 01 on >"$work/log" 2>&1
until [[ -S $work/wire ]]; do # the other QEMU does not try twice
	kill -0 "${guests[0]}" || { cat "$work/log" && exit 1; }
	sleep 0.1
done
boot node 02 off -n

ended=0
wait -n -p first "${guests[@]}" || ended=$?
if [[ $first == "${guests[0]}" ]]; then
	echo "vm: the servers ended with $ended"
	ended=1
fi
((ended == 0)) || sed 's/^/servers: /' "$work/log"
echo "vm: ran the node in $SECONDS s, of which the boot took $(sed -n 's/^boot //p' "$work/out.node/status") s"
exit "$ended"
