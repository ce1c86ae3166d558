#!/bin/bash
# run.sh runs all tests that need a guest, in parts, and tells what each took. Three parts run at a time, each in a guest,
# since most of them wait. With TEST, a regular expression, or PKG, a list of packages, it runs only these, in one guest.
# CEPH_TAGS are the build tags of the server with Ceph's libraries.
set -euo pipefail
cd "$(dirname "$0")/../.."

packages() { # all that have tests which need root
	grep -rlE --include='*_test.go' '/internal/testkit"|/test/harness"' cmd internal test | xargs dirname | sort -u | sed 's,^,./,'
}

if [[ -n ${TEST:-}${PKG:-} ]]; then
	suites=()
	for package in ${PKG:-$(packages)}; do
		suites+=("$package${TEST:+=$TEST}")
	done
	exec test/vm/tests.sh "${suites[@]}"
fi

nfs=./internal/driver/mount/nfs rbd=./internal/driver/attach/rbd iscsi=./internal/driver/attach/iscsi
# What needs no server runs on the host too. Here runs what this older kernel may do otherwise, and what it has and the host
# may not: the device mapper, the controllers of cgroup2. All of it runs here at full length.
others=(./internal/sys/cgroup ./test/docs=^TestCommands\$ ./internal/driver/attach/web=^TestOnDemand ./internal/web/keep)
mapping='=^Test(Driver|Mappings|Refusals|Users|HangAtUp|Force|Adopt.*)$'
sessions='!^Test(Parallel|TakenOverAndLost|AttachWhileRecovering|TargetRestarts)$'
asking='(Answers|Hangs|Writable)' longer=''
kernel='=^Test(ContainerCannotSeeTheNode|ImageOnDemand.*|InheritedCapabilities|HostDevices|ContainerRootHeld|DetachedDeviceIsBroken|FailedFileSystemIsBroken|DiskFails|MapperHolds'
kernel+='|HostileImage|KrakenHangingCreate|References|FileSystems|Resources.*|Systemd|RecoversAllObjects|Upper.*|Stuck(Paths|Device|Disks)|RequireVerity.*'
kernel+='|Verity(Corruption|Refuses|Stops|AfterRestart|Busy|TableChanged))$'
if [[ ${IMAGEAPI_TEST_FULL:-} ]]; then
	mapfile -t others < <(packages | grep -vxF "$(printf '%s\n' $nfs $rbd $iscsi ./test/e2e)")
	mapping='' sessions='' asking='' longer=ForLong kernel='!^Test((Chaos)?(NFS|ISCSI|RBD)|StuckServers$)'
fi

part() { # NAME COMMAND...: run it in the background, when fewer than three others run
	while (($(jobs -rp | wc -l) >= 3)); do
		wait -n
	done
	timed "$@" &
}
timed() {
	local name=$1 begin=$SECONDS ended=0
	shift
	"$@" || ended=$?
	echo "$name $((SECONDS - begin)) $ended" >>"$times"
}
times=$(mktemp)
trap 'rm -f "$times"' EXIT
# The longest come first. What is wrong with an image is told by the kernel alone in servers, and by the cluster in ceph.
part nfs test/vm/tests.sh -n vm-nfs $nfs "./test/e2e=^Test(NFS.*|StuckServers|ChaosNFS(|$longer))\$"
part servers test/vm/tests.sh -n vm-servers $rbd=^TestRefusals "./test/e2e=^Test(ISCSI.*|RBD.*|Chaos(ISCSI|RBD)(|$longer))\$"
part kernel test/vm/tests.sh -n vm-kernel "./test/e2e$kernel"
part others test/vm/tests.sh -n vm-others "${others[@]}"
part ceph test/vm/tests.sh -n vm-ceph -s bin/imageapi-server-ceph -g "$CEPH_TAGS" "$rbd$mapping" "./test/e2e=^TestRBD$asking"
part crash test/vm/tests.sh -n vm-crash "./test/crash=^TestKilledAtEachAct\$/^(nfs|iscsi|rbd|verity)"
part package test/vm/package.sh
part iscsi test/vm/tests.sh -n vm-iscsi "$iscsi$sessions" ./internal/sys/iscsi=^TestEventsFail\$
part node test/vm/node.sh
part initramfs test/vm/initramfs.sh
wait
echo "vm: all of it took $SECONDS s:"
awk '{printf "vm:   %-9s %4d s%s\n", $1, $2, $3 ? ", FAILED" : ""} $3 {bad = 1} END {exit bad || NR != 10}' "$times"
