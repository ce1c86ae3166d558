#!/bin/bash
# package.sh [--twice] VERSION makes bin/imageapi_VERSION_ARCH.deb and bin/imageapi-VERSION-1.ARCH.rpm of what is built, and prints their paths. The same tree gives
# the same packages, to the bit, since their times are that of the last commit: with --twice it fails if that is not so. What is no version to Debian, such
# as a bare commit, comes before all that are. $MAINTAINER is who answers for the packages, where that is not the project.
set -euo pipefail
cd "$(dirname "$0")/.."
twice=''
[[ ${1:-} != --twice ]] || { twice=yes && shift; }
version=${1:?usage: package.sh [--twice] VERSION}

SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
ARCH=$(go env GOARCH)
if [[ $version =~ ^v?([0-9].*\..*)$ ]]; then
	PACKAGE_VERSION=${BASH_REMATCH[1]/-/+}
else
	PACKAGE_VERSION=0~git$(date --utc --date="@$SOURCE_DATE_EPOCH" +%Y%m%d%H%M%S).$version
fi
PACKAGE_VERSION=${PACKAGE_VERSION//-/.}
MAINTAINER=${MAINTAINER:-The ImageAPI authors <kraken-hpc@users.noreply.github.com>}
export SOURCE_DATE_EPOCH ARCH PACKAGE_VERSION MAINTAINER

mkdir -p bin/package
rm -rf bin/package/man
mkdir bin/package/man
go run ./build/man bin/package/man
gzip -9n bin/package/man/*
gzip -9n <CHANGELOG.md >bin/package/changelog.gz
for shell in bash zsh fish; do bin/imageapi completion $shell >bin/package/completion.$shell; done

# The guides, with links that lead to files of the package: as Markdown, and as pages for a browser.
rm -rf bin/package/doc
mkdir -p bin/package/doc/guides
cp README.md swagger.yaml CHANGELOG.md bin/package/doc
cp -r docs/*.md docs/*.svg docs/attachments docs/mounts docs/schemes docs/pictures docs/examples bin/package/doc/guides
go run ./build/site unpack docs/site.zip bin/package/doc/html
(
	cd bin/package/doc/html # both forms share their other files
	rm -r examples swagger.yaml
	ln -s ../guides/examples examples
	ln -s ../swagger.yaml swagger.yaml
	for picture in assets/growth.*.svg; do ln -sf ../../guides/growth.svg "$picture"; done
)
chmod -R u=rwX,go=rX bin/package/doc

pack() { # FORMAT FILE
	bin/tools/nfpm package --config build/nfpm.yaml --packager "$1" --target "$2" >/dev/null
}
declare -A named=([amd64]=x86_64 [arm64]=aarch64) # by the distributions with RPM
for package in "bin/imageapi_${PACKAGE_VERSION}_$ARCH.deb" "bin/imageapi-$PACKAGE_VERSION-1.${named[$ARCH]:-$ARCH}.rpm"; do
	format=${package##*.}
	pack "$format" "$package"
	if [[ $twice ]]; then
		find bin/imageapi-server bin/package -exec touch {} + # their times make no difference
		pack "$format" bin/package.again
		if ! cmp "$package" bin/package.again; then
			echo "package: two packages of one tree differ" >&2
			exit 1
		fi
		rm bin/package.again
	fi
	echo "$package"
done
if [[ $twice ]] && command -v rpmlint >/dev/null; then
	rpmlint --strict --config build/rpm/rpmlint.toml "$package" >&2
fi
