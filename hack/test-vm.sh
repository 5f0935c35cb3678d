#!/usr/bin/env bash
# Runs the tests that need a kernel in a virtual machine of qemu: Debian's kernel 6.1, cgroup v2 only, AppArmor. No KVM
# is needed. As root; installs what is missing. Usage:
#
#   hack/test-vm.sh [systemd|selinux] [-run REGEXP] [-focus REGEXP] [PACKAGE...]
#
#   systemd        systemd is the guest's init, and makes the cgroups (a choice of the tests, if none are named)
#   selinux        the kernel runs SELinux, permissive, with a policy that has container types (the SELinux tests, if
#                  none are named)
#   -run REGEXP    only these tests (as go test's -run)
#   -focus REGEXP  only these specs of critest (as critest's -ginkgo.focus)
#   PACKAGE        folders, such as test/e2e sandbox/supervisor; without any all that are meant for this machine
#
# The guest is several times slower than the host, and stands still when the host does. Tests that fail there run once
# more, each alone, when all others have ended, as on the host (hack/gotest.sh). If they pass then, the run passes, and
# ends with lines "FLAKY: ..." that name the tests and what they said when they failed. That is no excuse for a test: it
# is to be mended.
#
# The exit status says whether all passed; a kernel panic or a run of more than LIMIT (1500) seconds is a failure. Logs of
# the guest, of its kernel and of daemons whose test failed are then in bin/vm/INIT/logs.
set -euo pipefail
cd "$(dirname "$0")/.."
source hack/lib.sh

# What runs when nothing is named: what the kernel, its cgroups or AppArmor can make come out otherwise than on the
# host. The ways of images, records, events and logs are the same here, and loads take long. critest runs whole.
meant=(test/e2e test/critest sandbox sandbox/cgroup sandbox/supervisor imageservice/internal/overlay imageservice/internal/layer
	cni cni/internal/hostport)
# It takes the default profile away for a moment, which all other containers have.
readonly alone='AppArmorDefaultProfile'
readonly kernels='AppArmor$|Capabilit|Confinement|Cgroup|Checkpoint|ContainerLifecycle|Stats|Device|ExecSync($|Timeout)|HostN|Metrics$|Mount(s|Propagation)|OOM|Pod(Init|Lifecycle)$|Privileged|Resources|Security(Of|Con|Ch|M|U)|UserNamespace($|V|H|F)|PIDNamespace|Sysctls|Update'
# Those of them that run behind critest, so that both processors have work to the end.
readonly behind='AppArmor$|Capabilit|Confinement|Checkpoint|OOM|Privileged|Sysctls|UserNamespace($|V|H|F)'
# What Debian's kernel has as modules, which somebody must load: macvlan, limits of bandwidth.
readonly modules='^Test(ReferenceMacvlan|BandwidthKilled)$'
# All of critest, and streaming over WebSockets too.
readonly specs='^Test(CRIConformance|StreamingOverWebSockets)$'
readonly layers='^Test(Unpack|UnpackRefuses|TimesAndXattrs|SecurityLowerLayersUnchanged)$'
# And with systemd, whose part are the cgroups.
readonly cgroups='(Pod|Container)Lifecycle|CgroupParent|Resources|Update|Stats|OOM|PodInitKilled|Outlive|SupervisorIs|SystemdUnit|Reboot'
readonly cgroup_specs='basic operations on|stats'
limit=${LIMIT:-1500}
init=busybox run='' focus='' packages=()
while (($#)); do
	case $1 in
	systemd | selinux) init=$1 ;;
	-run) run=$2 && shift ;;
	-focus) focus=$2 && shift ;;
	-*) die "$1: see the head of this script" ;;
	*) packages+=("${1#./}") ;;
	esac
	shift
done

need_root
hack/install-deps.sh vm
hack/build.sh && hack/build.sh critest
kernel=$(find /lib/modules -maxdepth 1 -name '*-cloud-amd64' -printf '%f\n' | sort -V | tail -n 1)
[[ -r /boot/vmlinuz-$kernel ]] || die "no kernel of linux-image-cloud-amd64 in /boot"

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# What of the repository the guest gets in /gantry: programs, and compiled tests beside their testdata.
project() {
	local p root=$tmp/gantry
	mkdir -p "$root/bin"
	cp -a bin/{gantry,gantry-supervisor,runc,critest} "$root/bin/"
	go build -trimpath -ldflags '-s -w' -o "$root/bin/" ./test/images/guest
	cp -a --parents hack/{lib,build}.sh hack/gantry.service "$root"
	for p in "${packages[@]}"; do
		mkdir -p "$root/$p"
		go test -c -trimpath -ldflags '-s -w' -o "$root/$p/${p##*/}.test" "./$p"
		[[ ! -d $p/testdata ]] || cp -a --parents "$p/testdata" "$root"
	done
}

# The guest's script: test/e2e beside all the others and some of its tests, a processor for each; with systemd before
# them, as its slices are the whole machine's and a test would take critest's scopes for what it has left.
script() {
	local p only e2e='' others='' driver=cgroupfs
	[[ $init != systemd ]] || driver=systemd
	for p in "${packages[@]}"; do
		case $p in
		test/critest) only=$specs && [[ -z $focus ]] || only=TestCRIConformance ;;
		test/e2e) only=${run:-$e2e_run} ;;
		imageservice/internal/layer) only=${run:-$layers_run} ;;
		cni) only=${run:-$modules_run} ;;
		*) only=$run ;;
		esac
		p=$(printf '%q ' suite "$p" CRITEST_FOCUS="$focus" CRITEST_RUNTIME=crun GANTRY_TEST_CGROUP_DRIVER="$driver" \
			"./${p##*/}.test" -test.v -test.timeout=20m \
			-test.skip='^Test(TakeoverLosesNoLine|ReopenLogUnderLoad)$' -test.run="$only") # loads, for which the guest is too slow
		if [[ $p == 'suite test/e2e '* ]]; then e2e=$p; else others+=$p$'\n'; fi
	done
	[[ -z $alone_run ]] || echo "${e2e/-test.run=*/-test.run=$alone_run}"
	[[ -z $e2e ]] || echo "$e2e${behind_run:+-test.skip=$(printf %q "$behind_run")} $([[ $init == systemd ]] || echo "&")"
	printf '%s' "$others"
	[[ -z $behind_run ]] || echo "${e2e/-test.run=*/-test.run=$(printf %q "$behind_run")}"
	echo wait
}

# boot runs the guest, without KVM, which machines that run tests seldom have: several times slower than the host. Its
# processor has no "fast" string instructions, which qemu does byte by byte.
boot() {
	local code append=''
	[[ $init != selinux ]] || append=' security=selinux selinux=1 enforcing=0'
	truncate -s 6G "$tmp/scratch"
	mke2fs -q -F -t ext4 -O ^has_journal -E lazy_itable_init=1,nodiscard "$tmp/scratch"
	truncate -s 256M "$tmp/out"
	timeout --foreground "$limit" qemu-system-x86_64 -M pc -accel "tcg,thread=multi" -cpu "max,la57=off,erms=off,fsrm=off" \
		-smp 2 -m 4096 -kernel "/boot/vmlinuz-$kernel" -initrd "$tmp/initrd" \
		-append "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off cgroup_no_v1=all no_timer_check tsc=reliable rcupdate.rcu_expedited=1 init_on_alloc=0$append" \
		-fw_cfg "name=opt/tests,file=$tmp/script" \
		-drive "if=none,id=s,format=raw,cache=unsafe,file=$tmp/scratch" -device virtio-blk-pci,drive=s,serial=scratch \
		-drive "if=none,id=o,format=raw,cache=unsafe,file=$tmp/out" -device virtio-blk-pci,drive=o,serial=out \
		-nodefaults -display none -no-reboot -serial stdio -serial "file:$tmp/status" </dev/null | tee "$tmp/console" || code=${PIPESTATUS[0]}
	rm -rf "bin/vm/$init"
	mkdir -p "bin/vm/$init"
	tar -C "bin/vm/$init" -xf "$tmp/out" 2>/dev/null || true # nothing is there after a panic
	case ${code:-0} in
	0) ;;
	124) die "the machine did not end within $limit s" ;;
	*) die "qemu ended with status $code" ;;
	esac
	[[ -s $tmp/status ]] || die "the machine ended before its tests: see its last lines"
	[[ $(<"$tmp/status") == 0 ]]
}


e2e_run='' layers_run='' modules_run='' alone_run='' behind_run=''
if ((!${#packages[@]})); then
	if [[ $init == systemd ]]; then
		packages=(test/e2e test/critest) e2e_run=$cgroups focus=${focus:-$cgroup_specs}
	elif [[ $init == selinux ]]; then
		packages=(test/e2e test/critest) e2e_run=SELinux focus=${focus:-SELinux}
	else
		packages=("${meant[@]}") e2e_run=$kernels layers_run=$layers modules_run=$modules
		[[ -n $run ]] || alone_run=$alone behind_run=$behind
	fi
fi
export CGO_ENABLED=0
project
hack/vm/rootfs.sh "$kernel" "$init" "$tmp/gantry" "$tmp/initrd"
script >"$tmp/script"
echo "the guest is made ($SECONDS s): $(du -m "$tmp/initrd" | cut -f 1) MiB"
boot
once=$(sed -n 's/^@@ passed alone: //p' "$tmp/console" | tr -d '\r' | sort)
[[ -z $once ]] || flaky "$once" "$tmp/console"
