#!/bin/bash
# Installs the Debian packages that the guest needs on the host. Each line: what must be in PATH, and its package.
set -euo pipefail

missing=()
while read -r program package; do
	PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null || missing+=("$package")
done <<'LIST'
busybox busybox-static
cpio cpio
depmod kmod
mke2fs e2fsprogs
mmdebstrap mmdebstrap
qemu-system-x86_64 qemu-system-x86
strip binutils
xz xz-utils
LIST
if ((${#missing[@]} == 0)); then
	exit 0
fi
if ((EUID != 0)); then
	echo "vm: missing: ${missing[*]}; run 'make vm-image' as root, or: sudo apt-get install ${missing[*]}" >&2
	exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
echo "vm: installed ${missing[*]}"
