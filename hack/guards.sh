#!/usr/bin/env bash
# Takes each security guard out of the product in turn; the test that is there for it must fail. Arguments: parts of
# the guards' ids. See test/guards.
set -euo pipefail
cd "$(dirname "$0")/.."
source hack/lib.sh
need_root
exec go run ./test/guards "$@"
