#!/usr/bin/env bash
# Pulls of one large layer, ten layers and many small files, gzip and zstd, against Debian's containerd when it is
# installed and against those whose programs CONTAINERD names (separated by colons). For example one of upstream's:
#   GOBIN=/tmp/peer CGO_ENABLED=0 go install github.com/containerd/containerd/v2/cmd/containerd@v2.3.4
#   CONTAINERD=/tmp/peer/containerd make bench-pull
# Arguments go to test/bench/pulls (see its main.go). TMPDIR says which disk the images are written to.
set -euo pipefail
cd "$(dirname "$0")/.."
source hack/lib.sh

need_root
hack/install-deps.sh
hack/build.sh
IFS=: read -ra peers <<<"${CONTAINERD:-}"
debian=$(command -v containerd || true)
exec go run ./test/bench/pulls "$@" ${debian:+"$debian"} "${peers[@]}"
