#!/bin/bash
# services.sh starts the servers of svc/ in the guest and checks that they serve.
set -euo pipefail
cd "$(dirname "$0")/../.."

ended=0
test/vm/guest.sh -t 300 test/vm/guest/services || ended=$?
echo "vm: checked the services in $SECONDS s, of which the boot took $(sed -n 's/^boot //p' bin/vm/status) s"
exit "$ended"
