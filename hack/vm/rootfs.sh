#!/usr/bin/env bash
# rootfs.sh KERNEL INIT FOLDER OUT: the guest's root as an uncompressed initramfs (which boots faster than a compressed
# one): files of this machine's Debian packages with the shared libraries they need, modules of KERNEL (a name in
# /lib/modules), the scripts of guest/, and FOLDER's content in /gantry. INIT is systemd, or busybox for no init system,
# or selinux for that and a policy of SELinux.
set -Eeuo pipefail
cd "$(dirname "$0")/../.."
source hack/lib.sh

readonly kernel=$1 init=$2 project=$3 out=$4
root=$(mktemp -d)
chmod 755 "$root" # the guest's /, which roots of user namespaces pass
trap 'rm -rf "$root"' EXIT
trap 'echo "rootfs.sh: line $LINENO: $BASH_COMMAND" >&2' ERR

declare -A copied=()

# add FILE [DESTINATION]: a file and the shared libraries it needs; a symbolic link is followed.
add() {
	local file=$1 to=${2:-$1} library
	rm -f "$root$to"
	install -D -p "$file" "$root$to"
	for library in $({ ldd "$file" 2>/dev/null || true; } | awk 'match($0, "/[^ ]*") {print substr($0, RSTART, RLENGTH)}'); do
		[[ -z ${copied[$library]:-} ]] || continue
		copied[$library]=1
		install -D -p "$(readlink -f "$library")" "$root$library"
	done
}

skeleton() {
	install -d "$root"/usr/{bin,sbin,lib64,lib/x86_64-linux-gnu} "$root"/{etc,proc,sys,dev,run,tmp,root,mnt} "$root"/var/{lib,log}
	local d
	for d in bin sbin lib lib64; do ln -s usr/$d "$root/$d"; done
	ln -s ../run "$root/var/run"
	printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$root/etc/passwd"
	printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
	echo '127.0.0.1 localhost' >"$root/etc/hosts"
	echo gantry-vm >"$root/etc/hostname"
	echo 'nameserver 127.0.0.1' >"$root/etc/resolv.conf" # nobody answers: the guest has no network
	printf 'passwd: files\ngroup: files\nhosts: files\n' >"$root/etc/nsswitch.conf"
}

programs() {
	local applet p
	add "$(command -v busybox)" /bin/busybox
	for applet in $(busybox --list-full); do
		[[ -e $root/$applet ]] || ln -s /bin/busybox "$root/$applet"
	done
	# Over busybox's own: what tests call and what busybox does too little of.
	for p in bash ip nft crun apparmor_parser ipcmk ipcrm ipcs tar mount umount unshare nsenter criu gzip; do
		rm -f "$root"/usr/{,s}bin/"$p"
		add "$(command -v "$p")" "/usr/bin/$p"
	done
	# CNI's own plugins; the tests look for rules that they leave.
	for p in host-local macvlan; do add "/usr/lib/cni/$p"; done
	for p in iptables-save ip6tables-save; do add "$(command -v iptables-nft)" "/usr/bin/$p"; done
	# CRIU stops the network of what it dumps, with nftables where iptables are not there.
	install -d "$root/etc/criu"
	echo 'network-lock nftables' >"$root/etc/criu/default.conf"
	# apparmor_parser compiles for the features that the kernel says it has, from these lists, and includes these files.
	install -d "$root/usr/share"
	cp -a /etc/apparmor /etc/apparmor.d "$root/etc/"
	cp -a /usr/share/apparmor-features "$root/usr/share/"
	# critest calls sudo before apparmor_parser.
	printf '#!/bin/sh\nexec "$@"\n' >"$root/usr/bin/sudo"
	chmod 755 "$root/usr/bin/sudo"
}

# modules that are loaded by name at boot or that the kernel asks for when a test uses them.
modules() {
	local wanted=(virtio_pci virtio_blk virtio_net qemu_fw_cfg overlay xfs fuse loop tun veth bridge br_netfilter dummy macvlan ipvlan
		nf_tables nft_compat nft_chain_nat nft_nat nft_masq nft_redir nft_ct nft_reject_inet nft_fib_inet nft_log nft_limit
		nft_hash nft_numgen nft_objref nf_conntrack_netlink xt_MASQUERADE xt_nat xt_mark xt_comment xt_conntrack
		xt_addrtype xt_tcpudp xt_multiport ifb sch_tbf sch_ingress act_mirred cls_u32 sctp unix_diag tcp_diag udp_diag raw_diag af_packet_diag netlink_diag binfmt_misc) m path
	for m in "${wanted[@]}"; do modprobe -S "$kernel" -D "$m"; done | awk '$1 == "insmod" && !seen[$2]++ {print $2}' |
		while read -r path; do install -D -p -m 644 "$path" "$root$path"; done
	cp "/lib/modules/$kernel"/modules.{builtin,builtin.modinfo,order} "$root/lib/modules/$kernel/"
	depmod -b "$root" "$kernel"
}

# systemd_init takes systemd and D-Bus as their packages installed them, with a target that holds the tests and
# D-Bus only: neither udev nor a journal.
systemd_init() {
	local f
	dpkg -L systemd dbus dbus-bin dbus-daemon dbus-system-bus-common |
		grep -vE '/(doc|man|locale|bash-completion|zsh|hwdb|catalog)(/|$)|/udev/' | while read -r f; do
		if [[ -L $f ]]; then
			rm -f "$root$f"
			install -d "$root$(dirname "$f")"
			cp -a "$f" "$root$f"
		elif [[ -f $f ]]; then
			add "$f"
		fi
	done
	grep -E '^(messagebus|systemd-)' /etc/passwd >>"$root/etc/passwd"
	grep -E '^(messagebus|systemd-|tty|adm|utmp)' /etc/group >>"$root/etc/group"
	: >"$root/etc/machine-id"
	cp -a hack/vm/guest/systemd/. "$root/etc/systemd/system/"
	ln -sf vm.target "$root/etc/systemd/system/default.target"
}

# selinux_policy compiles guest/selinux/policy.cil for the guest's kernel, which knows 27 initial SIDs by their order.
selinux_policy() {
	local categories sids s dir=$root/etc/selinux/gantry
	categories=$(printf 'c%d ' {0..1023})
	sids='kernel security unlabeled fs file file_labels init any_socket port netif netmsg node igmp_packet icmp_socket
		tcp_socket sysctl_modprobe sysctl sysctl_fs sysctl_kernel sysctl_net sysctl_net_unix sysctl_vm sysctl_dev kmod policy
		scmp_packet devnull'
	install -d "$dir/contexts" "$dir/policy"
	{
		cat hack/vm/guest/selinux/policy.cil
		printf '(category c%d)\n' {0..1023}
		echo "(categoryorder ($categories))"
		for s in $sids; do
			case $s in
			kernel | init | kmod) echo "(sid $s) (sidcontext $s host_process)" ;;
			*) echo "(sid $s) (sidcontext $s host_file)" ;;
			esac
		done
		echo "(sidorder ($sids))"
	} >"$root/tmp/policy.cil"
	secilc -c 33 -o "$dir/policy/policy.33" -f /dev/null "$root/tmp/policy.cil"
	install -m 644 hack/vm/guest/selinux/config "$root/etc/selinux/config"
	install -m 644 hack/vm/guest/selinux/lxc_contexts "$dir/contexts/lxc_contexts"
}

skeleton
programs
modules
if [[ $init == systemd ]]; then systemd_init; fi
if [[ $init == selinux ]]; then selinux_policy; fi
install -D -m 755 -t "$root/vm" hack/vm/guest/{mounts,run}
install -m 644 hack/again.awk "$root/vm/again.awk"
install -m 755 hack/vm/guest/init "$root/init"
ln -s "$([[ $init == systemd ]] && echo /lib/systemd/systemd || echo mounts)" "$root/vm/init"
cp -a "$project" "$root/gantry"
(cd "$root" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0) >"$out"
