#!/bin/bash
# services.sh starts the servers of svc/ in the guest and checks that they serve.
set -euo pipefail
cd "$(dirname "$0")/../.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
ended=0
test/vm/guest.sh -t 300 -o "$work" test/vm/guest/services || ended=$?
echo "vm: checked the services in $SECONDS s, of which the boot took $(sed -n 's/^boot //p' "$work/status") s"
exit "$ended"
