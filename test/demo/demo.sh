#!/bin/bash
# Runs a system image from a file and takes it away again, with a server of its own and nothing but curl.
# `make demo` builds the server first. Needs root, and touches nothing outside its own directory in /run.
set -euo pipefail

tree=$(cd "$(dirname "$0")/../.." && pwd)
((EUID == 0)) || { echo "demo: needs root: mounts and containers are made" >&2; exit 1; }

if [[ -t 1 ]]; then bold=$'\e[1m' plain=$'\e[0m'; else bold='' plain=''; fi
step() { printf '\n%s==> %s%s\n' "$bold" "$*" "$plain"; }

work=$(mktemp -d /run/imageapi-demo.XXXXXX)
image=$work/image.squashfs socket=$work/api.sock cgroup=/${work##*/}
server='' web=''

# Whatever happens: the server takes down what it made, and the directory goes only when nothing is mounted in it.
finish() {
	local status=$?
	stop_web
	stop_server || status=1
	if ! grep -qF "$work/" /proc/self/mountinfo; then
		rm -rf "$work"
	else
		echo "demo: still mounted below $work" >&2
		status=1
	fi
	exit "$status"
}
trap finish EXIT

stop_server() {
	[[ -n $server ]] || return 0
	local pid=$server
	server=
	kill -TERM "$pid"
	wait "$pid" || { echo "demo: the server ended with status $?; its log:" >&2; cat "$work/server.log" >&2; return 1; }
}

stop_web() {
	[[ -n $web ]] || return 0
	kill "$web"
	wait "$web" 2>/dev/null || true
	web=
}

api() { # api METHOD PATH [BODY]: the answer, or its error and the end of the demo
	local answer status
	answer=$(curl --silent --show-error --max-time 60 --unix-socket "$socket" --write-out '\n%{http_code}' \
		--request "$1" "http://localhost/imageapi/v1$2" ${3:+--header 'Content-Type: application/json' --data "$3"})
	status=${answer##*$'\n'}
	answer=${answer%$'\n'*}
	if ((status >= 300)); then
		echo "demo: $1 $2: $status $(jq -r .message <<<"$answer")" >&2
		return 1
	fi
	printf '%s\n' "$answer"
}

# says TEXT: waits until the container has written a line that begins with TEXT.
says() {
	timeout 20 grep -q -m 1 "^$1" < <(exec tail -n +1 -f "$log") || { echo "demo: the container did not say '$1'" >&2; return 1; }
}

# census WHEN: notes what there is of the demo on this machine.
census() {
	local cgroups mounts loops processes
	cgroups=$(findmnt --noheadings --raw --types cgroup2 --output TARGET | head -1)$cgroup
	mounts=$(grep -cF " $work/" /proc/self/mountinfo || true)
	loops=$(grep -lsF "$work/" /sys/block/loop*/loop/backing_file | wc -l || true)
	processes=$(grep -lsE ":$cgroup(/|\$)" /proc/[0-9]*/cgroup | wc -l || true)
	cgroups=$(find "$cgroups" -type d 2>/dev/null | wc -l || true)
	printf '%-18s %8s %8s %11s %8s\n' "$1" "$mounts" "$loops" "$processes" "$cgroups" >>"$work/census"
}

step "Make an image: busybox and a script, in a SquashFS file"
mkdir -p "$work"/root/{bin,dev,proc,sys,tmp,etc,run}
busybox=$(command -v busybox)
cp "$busybox" "$work/root/bin/busybox"
for applet in sh cat echo hostname ls mount ps sleep touch uname; do ln -s busybox "$work/root/bin/$applet"; done
cat >"$work/root/bin/start" <<'SCRIPT'
#!/bin/sh
# The first process of the container.
trap 'echo "asked to stop: goodbye"; exit 0' TERM
echo "hello from $(hostname), process $$, on Linux $(uname -r)"
touch /written && echo "the image is read-only, and yet: $(ls /written) is there"
ps
echo ready
while :; do sleep 3600 & wait $!; done
SCRIPT
chmod 755 "$work/root/bin/start"
mksquashfs "$work/root" "$image" -quiet -no-progress -all-root >/dev/null
du -h "$image"

step "Start the server"
"$tree/bin/imageapi-server" --teardown --socket-path "$socket" --run-dir "$work/state" --cgroup-parent "$cgroup" >"$work/server.log" 2>&1 &
server=$!
curl --silent --retry 50 --retry-delay 1 --retry-all-errors --retry-connrefused --unix-socket "$socket" -o /dev/null http://localhost/imageapi/v1/container
"$tree/bin/imageapi-server" --version
census "server runs"

step "Ask for the whole stack in one request: container, overlay, SquashFS, loop device"
request='{
  "name": "demo",
  "command": "/bin/start",
  "state": "running",
  "mount": {"kind": "overlay", "overlay": {"lower": [
    {"kind": "attach", "attach": {"fs_type": "squashfs", "attach":
      {"kind": "loopback", "loopback": {"path": "'$image'", "base": "root"}}}}]}}
}'
printf 'POST /container\n%s\n' "$request"
answer=$(api POST /container "$request")
jq -r '"\n201 Created: container \(.id) is \(.state)"' <<<"$answer"
log=$(jq -r .logfile <<<"$answer")

step "Look at it"
api GET /container | jq -r '.[] | "container \(.id)  \(.name)  \(.state)  pid \(.pid)"'
api GET /mount | jq -r '.[] | "mount     \(.id)  \(.kind)  \(.mountpoint)  refs \(.refs)"'
api GET /attach | jq -r '.[] | "attach    \(.id)  \(.kind)  \(.device_file)  refs \(.refs)"'
says ready
printf '\nits log, %s:\n' "$log"
sed 's/^/    /' "$log"
census "image runs"

step "Pause it, resume it, stop it"
for state in paused running exited; do
	printf 'PATCH %-7s -> %s\n' "$state" "$(api PATCH "/container?name=demo&state=$state" | jq -r .state)"
done
says 'asked to stop'
tail -1 "$log" | sed 's/^/    /'

step "Delete the container: everything below it goes too"
api DELETE "/container?name=demo&force=true" | jq -r '"200 OK: container \(.id) is gone, it had ended with status \(.exit_code)"'
printf 'containers %s, mounts %s, attachments %s\n' "$(api GET /container)" "$(api GET /mount)" "$(api GET /attach)"
census "image deleted"

step "The same image from a web server, named by its URL: one command, no file"
port=$((20000 + RANDOM % 10000))
mkdir "$work/web" && ln "$image" "$work/web/image.squashfs"
"$busybox" httpd -f -p "127.0.0.1:$port" -h "$work/web" &
web=$!
curl --silent --retry 50 --retry-delay 1 --retry-all-errors --retry-connrefused -o /dev/null "http://127.0.0.1:$port/"
client() { "$tree/bin/imageapi" --host "unix://$socket" "$@"; }
printf 'imageapi run http://127.0.0.1:%s/image.squashfs --name web --command /bin/start\n' "$port"
client run "http://127.0.0.1:$port/image.squashfs" --name web --command /bin/start 2>&1
log=$(api GET '/container?name=web' | jq -r '.[0].logfile')
says ready
client tree web
api GET /attach | jq -r '.[0].http | "fetched \(.fetched) bytes, \(.digest // .mode)"'
census "web image runs"
client remove --force web
stop_web
census "web image deleted"

step "Stop the server, and look for what is left on the machine"
stop_server
census "server stopped"
printf '%-18s %8s %8s %11s %8s\n' '' mounts loops processes cgroups
cat "$work/census"
if tail -1 "$work/census" | grep -q '[1-9]'; then
	echo "demo: something is left" >&2
	exit 1
fi
printf '\nNothing is left.\n'
