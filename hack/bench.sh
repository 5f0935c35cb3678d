#!/usr/bin/env bash
# Go benchmarks of the packages, then the figures of a real instance. Arguments go to test/bench instead (see its
# doc.go), for example: hack/bench.sh -rt a=unix:///run/a.sock,/a -rt b=unix:///run/b.sock,/b pod exec
set -euo pipefail
cd "$(dirname "$0")/.."
source hack/lib.sh

need_root
hack/install-deps.sh
hack/build.sh
if (($#)); then
	exec go run ./test/bench "$@"
fi
go list ./... | grep -v /test/ | xargs go test -run '^$' -bench . -benchmem
go run ./test/bench pod parallel exec log
