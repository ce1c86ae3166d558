#!/bin/bash
# guest.sh [-n] [-i] [-t SECONDS] [-a DIR] [-o DIR] COMMAND [ARGUMENT]... runs the shell script COMMAND as root in a guest that
# is thrown away afterwards. Its output goes to standard output; the status is that of the command, 124 if it took longer than
# SECONDS (default 300), 125 if the guest ended without one.
#
#   -n    a node: nothing but the initrd; else the root image, and this source tree under the same path, read-only
#   -i    interactive: the command has the terminal
#   -a    add what is in DIR to the initrd
#   -o    leave console.log, what the kernel said, and status, what became of boot and command, in DIR
#
# The guest has no network device, unless the ARGUMENTs, which are QEMU's, give it one. VM_ACCEL, VM_CPUS and VM_MEMORY (MiB)
# set the machine. It needs no root, but for building the image.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
tree=$(cd "$here/../.." && pwd)

node='' interactive='' limit=300 added=() out=''
while getopts nit:a:o: option; do
	case $option in
	n) node=vm.node ;;
	i) interactive=yes ;;
	t) limit=$OPTARG ;;
	a) added+=("$OPTARG") ;;
	o) out=$OPTARG ;;
	*) exit 2 ;;
	esac
done
shift $((OPTIND - 1))
command=${1:?usage: guest.sh [-n] [-i] [-t SECONDS] [-a DIR] [-o DIR] COMMAND [ARGUMENT]...}
shift

image=$("$here/image.sh")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
out=${out:-$work}

initrd() {
	mkdir -p "$work/initrd/bin" "$work/initrd/vm"
	cp "$(command -v busybox)" "$work/initrd/bin/busybox"
	cp "$here/guest/init" "$work/initrd/init"
	cp "$here/guest/main" "$work/initrd/vm/main"
	cp "$command" "$work/initrd/vm/command"
	echo "$limit" >"$work/initrd/vm/limit"
	echo "$tree" >"$work/initrd/vm/tree"
	[[ -z $interactive ]] || touch "$work/initrd/vm/interactive"
	for dir in "$image/boot" "$work/initrd" "${added[@]}"; do # one archive after the other: the kernel unpacks all
		(cd "$dir" && find . | cpio --create --format=newc --owner=0:0 --quiet)
	done >"$work/initrd.cpio"
}

accelerator() { # KVM where a guest ends with it: that /dev/kvm exists says little where this machine is a guest itself
	if [[ -n ${VM_ACCEL:-} ]]; then
		echo "$VM_ACCEL"
		return
	fi
	if [[ ! -e $image/accelerator ]]; then
		local found="tcg,thread=multi"
		echo true >"$work/true"
		if [[ -w /dev/kvm ]] && VM_ACCEL=kvm timeout 20 "$here/guest.sh" -n -t 10 "$work/true" >/dev/null 2>&1; then
			found=kvm
		fi
		echo "$found" >"$image/accelerator.$$"
		mv "$image/accelerator.$$" "$image/accelerator" # whole: other guests may be looking for it
	fi
	cat "$image/accelerator"
}

machine() { # ARGUMENT...: start QEMU; the two ports are all that comes out of it
	# What costs time in emulation is to translate code. A program that lies at other addresses each time it is run (norandmaps) is
	# translated each time; a second processor costs a fifth more, huge pages a tenth. A Westmere has what Ceph's encryption needs,
	# and takes a sixth less than a processor with all extensions.
	timeout --foreground --kill-after=5 "$((limit + 60))" qemu-system-x86_64 \
		-machine q35,usb=off,hpet=off -accel "$(accelerator)" -cpu Westmere \
		-smp "${VM_CPUS:-1}" -m "${VM_MEMORY:-2048}" \
		-nodefaults -no-user-config -display none -monitor none -nic none -no-reboot \
		-kernel "$image/vmlinux" -initrd "$work/initrd.cpio" \
		-append "console=ttyS0 quiet panic=-1 mitigations=off nokaslr no_timer_check tsc=reliable nowatchdog audit=0 apparmor=0 cryptomgr.notests rcupdate.rcu_expedited=1 norandmaps transparent_hugepage=never $node" \
		-device virtio-serial-pci \
		-chardev "file,id=status,path=$out/status" -device virtserialport,chardev=status,name=status \
		"$@"
}

arguments=("$@")
if [[ -n $interactive ]]; then
	arguments+=(-serial mon:stdio)
else
	arguments+=(-serial "file:$out/console.log"
		-chardev "file,id=output,path=/dev/fd/3,append=on"
		-device "virtserialport,chardev=output,name=output")
fi
if [[ -z $node ]]; then
	arguments+=(-drive "file=$image/root.ext4,format=raw,if=virtio,snapshot=on,cache=unsafe"
		-virtfs "local,path=$tree,mount_tag=tree,security_model=none,readonly=on,multidevs=remap")
fi
: >"$out/status"
initrd
ended=0
if [[ -n $interactive ]]; then
	machine "${arguments[@]}" || ended=$?
else
	machine "${arguments[@]}" 3>&1 >&2 </dev/null | cat || ended=$? # QEMU opens its end anew: a pipe bears that
fi

status=$(sed -n 's/^status //p' "$out/status")
if [[ -n $status ]]; then
	exit "$status"
fi
if [[ -z $interactive ]]; then
	echo "vm: the guest ended without a status (QEMU's is $ended); the end of what its kernel said:" >&2
	tail -n 30 "$out/console.log" >&2
fi
exit $((ended == 124 || ended == 137 ? 124 : 125))
