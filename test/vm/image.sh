#!/bin/bash
# image.sh builds what the guest boots from, once for each state of this file, and prints the directory it is in:
#
#   vmlinux    the Debian 12 kernel, not compressed: QEMU starts it through PVH, which saves the guest the unpacking
#   boot/      its modules that the initrd holds
#   root.ext4  Debian 12 with what the tests need and all modules that a guest can use
#
# It needs root, and the packages of the file packages.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

# In the initrd: what leads to the root image, and what a node needs that has nothing but its initrd.
early=(virtio_pci virtio_blk virtio_console virtio_net 9pnet_virtio 9p crc32c-intel
	loop overlay squashfs erofs ext4 xfs btrfs
	nfs nfsv3 nfsv4 iscsi_tcp sd_mod rbd nbd)
packages=(
	squashfs-tools erofs-utils e2fsprogs xfsprogs btrfs-progs busybox-static fdisk util-linux curl jq kmod procps
	iproute2 nftables strace dmsetup cryptsetup-bin
	nfs-kernel-server nfs-common rpcbind
	open-iscsi
	ceph-mon ceph-osd ceph-common
	nginx-light docker-registry fio
	systemd
)
# What no guest has: these are two thirds of all modules.
absent=(sound drivers/{gpu,media,infiniband,staging,usb,iio,hwmon,bluetooth,hid,input,isdn,mmc,mtd,platform,power}
	drivers/net/{ethernet,wireless,can,usb,wwan} net/{bluetooth,wireless,mac80211,can})

key=$(sha256sum "$here/image.sh" | cut -c1-12)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/imageapi-vm
image=$cache/$key

# A hook of mmdebstrap(1), which calls this script again.
kernel() { # ROOT: fetch the kernel package by the guest's own package lists, install its modules in ROOT
	local root=$1 package version modules
	package=$(APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-cache depends linux-image-amd64 | awk '$1 == "Depends:" {print $2}')
	cd "$BUILD"
	APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get -qq -o APT::Sandbox::User=root download "$package"
	dpkg-deb --extract "$package"_*.deb package
	version=${package#linux-image-}
	modules=package/lib/modules/$version
	(cd "$modules/kernel" && rm -rf "${absent[@]}")
	# Without debug data and signature: the check of a signature takes long in an emulated machine.
	find "$modules" -name '*.ko' -print0 | xargs -0 -n 200 strip --strip-debug
	depmod --basedir package "$version"

	unpack "package/boot/vmlinuz-$version" >vmlinux
	mkdir boot
	for module in "${early[@]}"; do
		modprobe --dirname package --set-version "$version" --show-depends "$module"
	done | sed -n 's,^insmod .*/package/\(.*[^ ]\) *$,\1,p' | sort -u | (cd package && xargs cp --parents --target-directory=../boot)
	cp "$modules"/modules.{builtin,builtin.modinfo,order} "boot/lib/modules/$version/"
	depmod --basedir boot "$version"

	mkdir -p "$root/usr/lib/modules"
	cp -r "$modules" "$root/usr/lib/modules/"
	rm -r package "$package"_*.deb
}

unpack() { # VMLINUZ: the xz stream in it
	local at
	at=$(LC_ALL=C grep --only-matching --byte-offset --binary --text --max-count=1 --perl-regexp '\xfd7zXZ\x00' "$1" | cut -d: -f1 | head -n 1)
	tail -c "+$((at + 1))" "$1" | xz --decompress --stdout --single-stream 2>/dev/null || true # what follows it is no xz
}


build() {
	if ((EUID != 0)); then
		echo "vm: building the image needs root: run 'make vm-image' as root once" >&2
		exit 1
	fi
	export BUILD=$image.new
	rm -rf "$BUILD"
	mkdir -p "$BUILD"
	# In a mount namespace, so that nothing stays mounted if it fails.
	unshare --mount --propagation private mmdebstrap --quiet --variant=minbase --format=directory \
		--include="$(IFS=,; echo "${packages[*]}")" \
		--aptopt='APT::Install-Recommends "false"' \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' \
		--customize-hook="'$here/image.sh' kernel \"\$1\"" \
		bookworm "$BUILD/root" >&2
	# Sparse: 6 GiB, a tenth of it in use.
	mke2fs -q -t ext4 -O ^has_journal -m 0 -E root_owner=0:0 -d "$BUILD/root" "$BUILD/root.ext4" 6G
	rm -r "$BUILD/root"
	mv "$BUILD" "$image"
}

case ${1:-} in
kernel) kernel "$2" ;;
'')
	mkdir -p "$cache"
	exec 9>"$cache/lock"
	flock 9
	[[ -d $image ]] || build
	echo "$image"
	;;
*)
	echo "usage: image.sh" >&2
	exit 2
	;;
esac
