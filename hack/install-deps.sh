#!/usr/bin/env bash
# Makes a Debian machine able to build Gantry and to run a pod: installs what is missing and nothing else, says
# what it does, and is done at once when nothing is missing.
#   Debian packages (as root): busybox-static for the test images; gcc and libc6-dev for Go's race detector, with
#   libseccomp-dev and pkg-config when runc has to be built; make, git, procps and ca-certificates. With the
#   argument test also e2fsprogs and xfsprogs for the disks whose power the tests cut, umoci, whose unpacking
#   is compared with Gantry's, crun, the other OCI runtime, and the reference plugins of CNI with the iptables that some
#   of them call.
#   With vm qemu, Debian's cloud kernel and the programs that the virtual machines of hack/test-vm.sh and test/reset have.
#   runc: kept in bin/, not in the system; one in PATH that is recent enough is used instead.
set -euo pipefail
cd "$(dirname "$0")/.."
source hack/lib.sh

need_go() {
	local want have
	want=$(awk '$1 == "go" {print $2}' go.mod)
	if ! command -v go >/dev/null; then
		die "Go is not installed: Gantry needs $want or newer, from https://go.dev/dl (unpack it to /usr/local and put /usr/local/go/bin in PATH)"
	fi
	have=$(go env GOVERSION)
	version_at_least "${have#go}" "$want" || die "Go is $have: Gantry needs $want or newer, from https://go.dev/dl"
}

# install_packages PACKAGE=TEST...: installs the packages whose test fails.
install_packages() {
	local entry missing=()
	for entry in "$@"; do
		eval "${entry#*=}" >/dev/null 2>&1 || missing+=("${entry%%=*}")
	done
	((${#missing[@]})) || return 0
	echo "installing ${missing[*]}"
	((EUID == 0)) || die "not root: run 'apt-get install ${missing[*]}' as root, then this again"
	command -v apt-get >/dev/null || die "no apt-get here: install ${missing[*]} (Debian's names) by hand, then run this again"
	export DEBIAN_FRONTEND=noninteractive
	apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null 2>&1 ||
		{ apt-get update -qq && apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null; }
}

static_busybox() { [[ -x /bin/busybox ]] && ! ldd /bin/busybox; }

need_go
install_packages "ca-certificates=test -s /etc/ssl/certs/ca-certificates.crt" "make=command -v make" \
	"git=command -v git" "procps=command -v pgrep" "busybox-static=static_busybox" \
	"gcc=command -v gcc" "libc6-dev=test -e /usr/include/stdlib.h"
if [[ ${1:-} == test ]]; then
	install_packages "e2fsprogs=command -v mkfs.ext4" "xfsprogs=command -v mkfs.xfs" "umoci=command -v umoci" "crun=command -v crun" \
		"containernetworking-plugins=test -x /usr/lib/cni/bridge" "iptables=command -v iptables" "nftables=command -v nft"
fi
if [[ ${1:-} == vm ]]; then
	install_packages "qemu-system-x86=command -v qemu-system-x86_64" "linux-image-cloud-amd64=ls /boot/vmlinuz-*-cloud-amd64" \
		"kmod=command -v modprobe" "cpio=command -v cpio" "e2fsprogs=command -v mke2fs" "crun=command -v crun" \
		"apparmor=command -v apparmor_parser" "criu=command -v criu" "gzip=command -v gzip" "iproute2=command -v ip" "nftables=command -v nft" "util-linux=command -v ipcmk" \
		"containernetworking-plugins=test -x /usr/lib/cni/bridge" "iptables=command -v iptables-nft" \
		"secilc=command -v secilc" "systemd=test -x /lib/systemd/systemd" "dbus=test -e /lib/systemd/system/dbus.service"
fi
if [[ -z $(find_runc) ]]; then
	install_packages "libseccomp-dev=test -e /usr/include/seccomp.h" "pkg-config=command -v pkg-config"
	hack/build.sh runc
fi
