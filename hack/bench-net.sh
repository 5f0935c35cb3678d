#!/usr/bin/env bash
# RunPodSandbox, StopPodSandbox and RemovePodSandbox of pods without containers: one pod at a time, then up to 500 at
# once, with the plot of docs/network.md (docs/network-scale.svg). Beside a containerd with the reference plugins bridge,
# host-local and portmap, which is built into a cache outside of the tree; PEER=none leaves it out, PEER=/path/containerd
# takes another (its shim beside it). Arguments go to test/bench (see its doc.go), for example: hack/bench-net.sh -n 20
set -euo pipefail
cd "$(dirname "$0")/.."
source hack/lib.sh

version=v2.3.4
need_root
hack/install-deps.sh test
hack/build.sh
peer=${PEER:-${XDG_CACHE_HOME:-$HOME/.cache}/gantry-bench/containerd-$version/containerd}
if [[ -z ${PEER:-} && ! -x $peer ]]; then
	echo "building containerd $version in $(dirname "$peer")"
	for program in containerd-shim-runc-v2 containerd; do
		GOBIN=$(dirname "$peer") CGO_ENABLED=0 go install "github.com/containerd/containerd/v2/cmd/$program@$version"
	done
fi
[[ $peer == none ]] && peer=
go run ./test/bench -n 100 -plot docs/network-scale.svg ${peer:+-containerd "$peer"} "$@" sandbox scale
