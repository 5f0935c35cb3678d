#!/usr/bin/env bash
# A container's stdout to its log file: 80-byte lines from one container and from 50 at once, without and with rotation,
# every byte accounted for, beside Debian's conmon and containerd where they are installed (apt-get install conmon
# containerd) and beside the containerds whose programs CONTAINERD names (separated by colons); then what 500 silent
# containers cost the supervisor. Arguments go to test/bench/logs (see its main.go). TMPDIR says which disk is written to.
set -euo pipefail
cd "$(dirname "$0")/.."
source hack/lib.sh

need_root
hack/install-deps.sh
hack/build.sh
peers=()
IFS=: read -ra named <<<"${CONTAINERD:-}"
conmon=$(command -v conmon || true)
debian=$(command -v containerd || true)
peers+=(${conmon:+-conmon "$conmon"} "$@" ${debian:+"$debian"} "${named[@]}")
[[ $conmon ]] || echo "no conmon here: not compared with it" >&2
[[ $debian || ${named[*]} ]] || echo "no containerd here: not compared with it" >&2
exec go run ./test/bench/logs "${peers[@]}"
