#!/bin/bash
# Looks for known vulnerabilities in what the programs call, by govulncheck. The database is asked over the network,
# GOVULNDB (default https://vuln.go.dev). Where it cannot be reached it checks nothing and reports that;
# with VULNCHECK=must that is a failure.
set -euo pipefail
cd "$(dirname "$0")/.."

db=${GOVULNDB:-https://vuln.go.dev}
if ! why=$(curl --silent --show-error --fail --max-time 20 --output /dev/null "$db/index/db.json" 2>&1); then
	echo "vulncheck: NOT CHECKED: the database $db cannot be reached: $why" >&2
	[[ ${VULNCHECK:-} != must ]]
	exit
fi
bin/tools/govulncheck -db "$db" ./cmd/...
