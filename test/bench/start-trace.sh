#!/bin/bash
# Shows what one start of a container costs: the system calls that make something, in their order and by who makes
# them, and how long a start takes when nobody watches. `make trace` builds the server first. Needs root and strace.
set -euo pipefail
tree=$(cd "$(dirname "$0")/../.." && pwd)
((EUID == 0)) || { echo "trace: needs root: containers are started" >&2; exit 1; }
starts=${STARTS:-50} # that are timed

work=$(mktemp -d /run/imageapi-trace.XXXXXX)
server='' tracer=''
finish() {
	[[ -z $tracer ]] || kill "$tracer" 2>/dev/null || true
	[[ -z $server ]] || { kill -TERM "$server" && wait "$server"; }
	grep -qF "$work/" /proc/self/mountinfo || rm -rf "$work"
}
trap finish EXIT

mkdir -p "$work"/root/{bin,proc,sys,dev}
cp "$(command -v busybox)" "$work/root/bin/busybox"
ln -s busybox "$work/root/bin/true"

"$tree/bin/imageapi-server" --teardown --run-dir "$work/run" --socket-path "$work/api.sock" --cgroup-parent "/${work##*/}" 2>"$work/log" &
server=$!
timeout 20 grep -q -m 1 listening < <(exec tail -n +1 -f "$work/log")

post() { # post PATH BODY: the answer, and in its last line the seconds
	curl --silent --fail --unix-socket "$work/api.sock" --header 'Content-Type: application/json' --data "$2" \
		--write-out '\n%{time_total}\n' "http://localhost/imageapi/v1$1"
}
root=$(post /mount "{\"kind\": \"bind\", \"bind\": {\"base\": \"root\", \"path\": \"$work/root\", \"ro\": true}}" | head -1 | jq .id)
start() { post /container "{\"command\": \"/bin/true\", \"state\": \"running\", \"mount\": {\"id\": $root}}" | tail -1; }

for ((i = 0; i < starts; i++)); do
	start
done >"$work/times"

strace -f -ttt -o "$work/calls" -e trace='clone3,execve,open_tree,move_mount,fsopen,fsmount,mount_setattr,mount,umount2,pivot_root,unshare,mknodat,symlinkat,mkdirat,setsid,seccomp' \
	-p "$server" 2>"$work/strace" &
tracer=$!
timeout 20 grep -q -m 1 attached < <(exec tail -n +1 -f "$work/strace")
start >/dev/null
kill "$tracer"
wait "$tracer" || true
tracer=''

awk '
	function who(pid) { return pid in role ? role[pid] : "server" }
	{ call = $3; sub(/\(.*/, "", call); at = $2 }
	/resumed>/ && /clone3/ { child = $NF; role[child] = who($1) == "server" ? "supervisor" : "init stage"; next }
	/resumed>/ || /\+\+\+/ || /---/ || call ~ /^</ { next }
	!begin { begin = at }
	call == "execve" { what = $3 " " $4 " " $5 } call != "execve" { what = "" }
	call == last && $1 == pid { count++; next }
	{ flush(); first = at; pid = $1; last = call; count = 1; text = what }
	function flush() { if (last) printf("%7.2f ms  %-11s %s%s%s\n", (first - begin) * 1000, who(pid), last, (count > 1 ? " x " count : ""), (text ? "  " substr(text, 8, 60) : "")) }
	END { flush() }
' "$work/calls"
sort -n "$work/times" | awk -v n="$starts" '{ t[NR] = $1 } END { printf "unwatched, from the request to the answer: median %.2f ms, fastest %.2f ms of %d starts\n", t[int((n + 1) / 2)] * 1000, t[1] * 1000, n }'
