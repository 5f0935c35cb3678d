#!/usr/bin/env bash
# Installs the binaries in PREFIX/bin and the unit in PREFIX/lib/systemd/system; PREFIX is /usr/local, and DESTDIR goes
# before it for packages. Nothing is started. Over an older version it may be done while that runs: restart the unit then.
set -euo pipefail
cd "$(dirname "$0")/.."
source hack/lib.sh

prefix=${PREFIX:-/usr/local}
[[ $prefix =~ ^(/[A-Za-z0-9._+-]+)+$ ]] || die "PREFIX=$prefix: an absolute path of letters, digits and ._+-"
hack/build.sh

# put MODE FILE TARGET: replaced by rename, so that nobody runs or reads a half.
put() {
	install -D -m "$1" "$2" "${DESTDIR:-}$3.new"
	mv -f "${DESTDIR:-}$3.new" "${DESTDIR:-}$3"
	echo "${DESTDIR:-}$3"
}

unit=$(mktemp)
trap 'rm -f "$unit"' EXIT
sed "s|^ExecStart=/usr/local/|ExecStart=$prefix/|" hack/gantry.service >"$unit"
put 755 "${GANTRY_TEST_BIN:-bin}/gantry" "$prefix/bin/gantry"
put 755 "${GANTRY_TEST_BIN:-bin}/gantry-supervisor" "$prefix/bin/gantry-supervisor"
put 644 "$unit" "$prefix/lib/systemd/system/gantry.service"
