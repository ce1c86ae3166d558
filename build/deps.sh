#!/bin/bash
# deps.sh [LIST] installs the Debian packages that building and testing need, if any is missing. A line of LIST
# (default: build/packages) names a file or a program in PATH, and the package that has it.
set -euo pipefail
list=${1:-$(dirname "$0")/packages}

missing=()
while read -r needed package; do
	[[ $needed == '#'* || -e $needed ]] && continue
	PATH=$PATH:/usr/sbin:/sbin command -v "$needed" >/dev/null || missing+=("$package")
done <"$list"

if ((${#missing[@]} == 0)); then
	exit 0
fi
if ! command -v apt-get >/dev/null; then
	echo "deps: missing, and this is not Debian: install what corresponds to ${missing[*]}" >&2
	exit 1
fi
if ((EUID != 0)); then
	echo "deps: missing: ${missing[*]}; as root run: apt-get install ${missing[*]}" >&2
	exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
echo "deps: installed ${missing[*]}"
