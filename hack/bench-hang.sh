#!/usr/bin/env bash
# An hour of a kubelet's polling of 50 pods without its pauses, beside a volume that hangs, a process that cannot be
# killed, a frozen container and an OCI runtime that does not end: how long the calls take, and what they leave.
set -euo pipefail
cd "$(dirname "$0")/.."
source hack/lib.sh

need_root
hack/install-deps.sh test
hack/build.sh
go test -count=1 -timeout 20m -run '^$' -bench '^BenchmarkHangs$' -benchtime 1x ./test/e2e
