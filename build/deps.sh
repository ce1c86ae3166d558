#!/bin/bash
# Installs the Debian packages that building and testing need. Each line: what must be in PATH, and its package.
set -euo pipefail

missing=()
while read -r program package; do
	PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null || missing+=("$package")
done <<'LIST'
bash bash
busybox busybox-static
curl curl
gcc gcc
git git
jq jq
mkfs.btrfs btrfs-progs
mkfs.erofs erofs-utils
mkfs.ext4 e2fsprogs
mkfs.xfs xfsprogs
mksquashfs squashfs-tools
sfdisk fdisk
shellcheck shellcheck
unshare util-linux
LIST
# The race detector links with the C library.
[[ -e /usr/include/stdlib.h ]] || missing+=(libc6-dev)

if ((${#missing[@]} == 0)); then
	exit 0
fi
if ! command -v apt-get >/dev/null; then
	echo "deps: missing, and this is no Debian: install what corresponds to ${missing[*]}" >&2
	exit 1
fi
if ((EUID != 0)); then
	echo "deps: missing: ${missing[*]}; run 'make deps' as root, or: sudo apt-get install ${missing[*]}" >&2
	exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
echo "deps: installed ${missing[*]}"
