#!/bin/bash
# package.sh [--twice] VERSION makes bin/imageapi_VERSION_ARCH.deb of what is built, and prints its path. The same tree gives the same
# package, to the bit, since its times are that of the last commit: with --twice it fails if that is not so. What is no version to Debian, such as a bare commit, comes before all that are.
set -euo pipefail
cd "$(dirname "$0")/.."
twice=''
[[ ${1:-} != --twice ]] || { twice=yes && shift; }
version=${1:?usage: package.sh [--twice] VERSION}

SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
ARCH=$(go env GOARCH)
if [[ $version =~ ^v?([0-9].*\..*)$ ]]; then
	DEB_VERSION=${BASH_REMATCH[1]/-/+}
else
	DEB_VERSION=0~git$(date --utc --date="@$SOURCE_DATE_EPOCH" +%Y%m%d%H%M%S).$version
fi
DEB_VERSION=${DEB_VERSION//-/.}
export SOURCE_DATE_EPOCH ARCH DEB_VERSION

mkdir -p bin/package
go run ./build/man bin/package
gzip -9nf bin/package/imageapi-server.8 bin/package/imageapi.1
gzip -9n <CHANGELOG.md >bin/package/changelog.gz
bin/imageapi completion >bin/package/completion

package=bin/imageapi_${DEB_VERSION}_$ARCH.deb
pack() { # FILE
	bin/tools/nfpm package --config build/deb/nfpm.yaml --packager deb --target "$1" >/dev/null
}
pack "$package"
if [[ $twice ]]; then
	touch bin/imageapi-server bin/package/* # their times make no difference
	pack bin/package/again.deb
	if ! cmp "$package" bin/package/again.deb; then
		echo "package: two packages of one tree differ" >&2
		exit 1
	fi
fi
echo "$package"
