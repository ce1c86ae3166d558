#!/bin/bash
# debian.sh SUITE builds a SquashFS image of Debian with systemd, dbus and logind and nothing that they do not need, once for
# each state of this file, and prints its path. Suites are bullseye, bookworm, trixie. It needs root, mmdebstrap and mksquashfs.
set -euo pipefail
suite=$1

key=$(sha256sum "$0" | cut -c1-12)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/imageapi-debian/$key
image=$cache/$suite.squashfs

build() {
	# In a mount namespace, so that nothing stays mounted if it fails. The names of this machine are not the image's.
	# shellcheck disable=SC2016 # the variable is of the hook
	unshare --mount --propagation private mmdebstrap --quiet --variant=essential --format=tar \
		--include=systemd,systemd-sysv,dbus,libpam-systemd \
		--aptopt='APT::Install-Recommends "false"' \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' \
		--customize-hook='rm -f "$1/etc/hostname" "$1/etc/resolv.conf"' \
		"$suite" "$image.tar"
	mksquashfs - "$image.new" -tar -quiet -no-progress -comp lz4 <"$image.tar"
	rm "$image.tar"
	mv "$image.new" "$image"
}

mkdir -p "$cache"
exec 9>"$image.lock"
flock 9
[[ -e $image ]] || build >&2
echo "$image"
