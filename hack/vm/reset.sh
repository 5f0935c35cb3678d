#!/usr/bin/env bash
# reset.sh FOLDER: makes the guest of test/reset, FOLDER/kernel and FOLDER/initrd: that of hack/test-vm.sh, with the
# programs of a node and the agent that lets the test in. As root; installs what is missing.
set -euo pipefail
cd "$(dirname "$0")/../.."
source hack/lib.sh

readonly out=$1
need_root
hack/install-deps.sh vm
hack/build.sh
kernel=$(find /lib/modules -maxdepth 1 -name '*-cloud-amd64' -printf '%f\n' | sort -V | tail -n 1)
[[ -r /boot/vmlinuz-$kernel ]] || die "no kernel of linux-image-cloud-amd64 in /boot"
project=$out/gantry
mkdir -p "$project/bin"
trap 'rm -rf "$project"' EXIT
cp -a bin/{gantry,gantry-supervisor,runc} "$project/bin/"
CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$project/bin/" ./test/reset/agent ./test/harness/list
hack/vm/rootfs.sh "$kernel" busybox "$project" "$out/initrd"
ln -s "/boot/vmlinuz-$kernel" "$out/kernel"
