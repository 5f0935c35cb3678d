# shellcheck shell=bash
# Functions that several scripts of hack/ share. Sourced from the repository's root.

die() {
	echo "$(basename "$0"): $*" >&2
	exit 1
}

need_root() { ((EUID == 0)) || die "needs root: containers are made of mounts, namespaces and cgroups"; }

# version_at_least HAVE WANT: whether dotted version HAVE is WANT or newer.
version_at_least() { [[ $(printf '%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]; }

# runc_is_sound BINARY: runc >= 1.2.8 but for 1.3.0 to 1.3.2, the versions without the container break-outs of
# November 2025 (CVE-2025-31133, CVE-2025-52565, CVE-2025-52881).
runc_is_sound() {
	local v
	v=$("$1" --version 2>/dev/null | awk 'NR == 1 {print $3}') || return 1
	[[ -n $v ]] && version_at_least "$v" 1.2.8 && [[ ! $v =~ ^1\.3\.[0-2]([^0-9]|$) ]]
}

# find_runc: prints the path of the runc to use; nothing when there is no sound one.
find_runc() {
	local candidate
	for candidate in "$PWD/bin/runc" "$(command -v runc || true)"; do
		if [[ -x $candidate ]] && runc_is_sound "$candidate"; then
			echo "$candidate"
			return
		fi
	done
}

# flaky TESTS OUTPUT: says that each line of TESTS names a test that passed only when run again, and what OUTPUT, a file,
# holds of its failure.
flaky() {
	{
		sed 's/$/ failed once, passed alone/' <<<"$1"
		awk -f "$(dirname "${BASH_SOURCE[0]}")/failures.awk" "$2"
	} | sed 's/^/FLAKY: /'
}
