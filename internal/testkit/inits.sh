#!/bin/bash
# inits.sh INIT builds a SquashFS image of Debian 13 with another init than systemd, once for each state of this file, and prints its
# path. INIT is sysvinit, openrc, runit, s6 or finit. It needs root, mmdebstrap and mksquashfs.
#
# The image is configured as that of a machine: with an address for eth0, kernel settings, a module and a swap file. It creates
# /booted when it has booted.
set -euo pipefail
init=$1

key=$(sha256sum "$0" | cut -c1-12)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/imageapi-inits/$key
image=$cache/$init.squashfs

declare -A packages=(
	[sysvinit]="sysvinit-core,sysv-rc,initscripts"
	[openrc]="openrc,sysvinit-core,initscripts"
	[runit]="runit-init,initscripts"
	[s6]="s6,execline,busybox-static"
	[finit]="finit-sysv"
)
machine=udev,kmod,procps,ifupdown,iproute2,util-linux-extra,util-linux

# s6 has no scripts of its own for process 1: these do what its page s6-svscan-1 asks for.
# shellcheck disable=SC2016 # the variables are of these scripts
s6() {
	mkdir -p "$1/etc/s6/.s6-svscan" "$1/etc/s6/boot"
	printf '#!/bin/sh\nPATH=/sbin:/bin\nmount -a\nmodprobe -a $(cat /etc/modules)\nsysctl -q --system\nifup -a\nswapon -a\ntouch /booted\nexec sleep infinity\n' >"$1/etc/s6/boot/run"
	printf '#!/bin/sh\nPATH=/sbin:/bin\nifdown -a\nswapoff -a\nhwclock --systohc\numount -a -r\nexec busybox $(cat /verb) -f\n' >"$1/etc/s6/.s6-svscan/finish"
	printf '#!/bin/sh\nexec s6-svscan /etc/s6\n' >"$1/sbin/init"
	for verb in poweroff halt reboot; do
		printf '#!/bin/sh\necho %s >/verb\nexec s6-svscanctl -t /etc/s6\n' $verb >"$1/sbin/$verb"
		chmod 755 "$1/sbin/$verb"
	done
	chmod 755 "$1/etc/s6/boot/run" "$1/etc/s6/.s6-svscan/finish" "$1/sbin/init"
}

configure() {
	printf 'auto lo eth0\niface lo inet loopback\niface eth0 inet static\n\taddress 192.0.2.99/24\n\tgateway 192.0.2.98\n' >"$1/etc/network/interfaces"
	printf 'kernel.printk = 1 4 1 7\nvm.swappiness = 61\nnet.ipv4.ip_forward = 1\nnet.ipv4.conf.all.accept_source_route = 1\nkernel.core_pattern = core.of.the.image\n' >"$1/etc/sysctl.d/90-image.conf"
	printf '/swap none swap sw 0 0\n/dev/vda none swap sw 0 0\n' >"$1/etc/fstab"
	echo dummy >"$1/etc/modules"
	printf '#!/bin/sh\ntouch /booted\n' >"$1/etc/rc.local"
	chmod 755 "$1/etc/rc.local"
	rm -f "$1/etc/hostname" "$1/etc/resolv.conf"
	[[ $init != s6 ]] || s6 "$1"
}

build() {
	# In a mount namespace, so that nothing stays mounted if it fails.
	# shellcheck disable=SC2016 # the variable is of the hook
	unshare --mount --propagation private mmdebstrap --quiet --variant=essential --format=tar \
		--include="${packages[$init]},$machine" \
		--aptopt='APT::Install-Recommends "false"' \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' \
		--customize-hook="'$(realpath "$0")' $init configure "'"$1"' \
		trixie "$image.tar"
	mksquashfs - "$image.new" -tar -quiet -no-progress -comp lz4 <"$image.tar"
	rm "$image.tar"
	mv "$image.new" "$image"
}

if [[ ${2-} == configure ]]; then
	configure "$3"
	exit
fi
mkdir -p "$cache"
exec 9>"$image.lock"
flock 9
[[ -e $image ]] || build >&2
echo "$image"
