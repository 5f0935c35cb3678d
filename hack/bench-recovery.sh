#!/usr/bin/env bash
# From the start of a daemon that was killed to its first exact lists, with 200 pods (docs/reliability.md): beside a containerd
# as hack/bench-net.sh builds it, if it is in the cache; PEER=/path/containerd takes another (its shim beside it), PEER=none
# leaves it out. Arguments go to test/bench (see its doc.go), for example: hack/bench-recovery.sh -recovery-pods 500
set -euo pipefail
cd "$(dirname "$0")/.."
source hack/lib.sh

need_root
hack/install-deps.sh test
hack/build.sh
peer=${PEER:-${XDG_CACHE_HOME:-$HOME/.cache}/gantry-bench/containerd-v2.3.4/containerd}
[[ -x $peer ]] || peer=
go run ./test/bench -n 9 ${peer:+-containerd "$peer"} "$@" recovery
