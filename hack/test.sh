#!/usr/bin/env bash
# Runs the tests: all stages, or those named: lint unit e2e vm-systemd critest tools kubelet vm. As root; installs what is
# missing.
#   unit   every package's own tests under the race detector, with those that need root
#   e2e    a real gantry driven over its CRI socket, with network and crash
#   network  that alone: its pods, the node and another host ask each other, over real namespaces
#   crash    that alone: the daemon or the supervisor killed at some of the changes that it makes in RPCs (docs/reliability.md)
#   crash-matrix  the same at all of them: an hour on a quiet machine; GANTRY_CRASH_ALL=REGEXP for those of some operations
#   chaos    random operations under random kills of daemon and supervisor, for GANTRY_CHAOS_TIME (10m); GANTRY_CHAOS_SEED
#   critest  the Kubernetes conformance suite against a real gantry
#   tools    builds critest and the kubelet, once: three minutes on two cores
#   kubelet  a real kubelet's static pods on a real gantry
#   vm       e2e, critest and other tests that need a kernel, on cgroup v2 in a virtual machine (hack/test-vm.sh)
#   vm-systemd  a choice of them with the systemd cgroup driver
#   reset    a virtual machine is reset in storms of requests (test/reset). Not one of all: under emulation it takes many
#            minutes where something else runs, and depends on qemu's own resets
# vm-systemd, critest and tools begin together, if named; what each prints still comes in one piece.
#
# Every stage runs even if one before it failed. The end says again which tests failed, with their messages and no more
# (hack/failures.awk); the exit code is 1 if a stage failed.
#
# In unit, e2e, vm and vm-systemd one to three failed tests run once more, each alone, when the others have ended. If they
# pass then, the stage passes, and the end has lines "FLAKY: ..." that name the tests and what they said. That is no
# excuse for a test: it is to be mended (hack/gotest.sh says what is never run again).
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
source hack/lib.sh
umask 022 # as the daemon's and the supervisor's

lint() { hack/lint.sh; }
# The longest packages first; three at once, for they wait too.
unit() { go list ./sandbox/supervisor ./test/unpack ./... | grep -v -e '/test/e2e$' -e '/test/network$' -e '/test/crash$' -e '/test/critest$' -e '/test/kubelet$' -e '/test/chaos$' -e '/test/reset$' | xargs hack/gotest.sh -race -p=3 -timeout=10m; }
e2e() {
	local failed=0
	hack/gotest.sh -count=1 -timeout=10m -exec="$PWD/hack/halves.sh" ./test/e2e ./test/network || failed=1
	crash || failed=1
	return $failed
}
network() { hack/gotest.sh -count=1 -timeout=10m -v ./test/network; } # a part of e2e
crash() { GANTRY_CRASH_SEED=${GANTRY_CRASH_SEED:-1} hack/gotest.sh -count=1 -timeout=10m -v ./test/crash; } # a part of e2e
crash-matrix() { GANTRY_CRASH_ALL=${GANTRY_CRASH_ALL:-1} go test -count=1 -timeout 4h -v ./test/crash; }
chaos() {
	local logs=${GANTRY_TEST_LOGS:-/tmp/gantry-chaos}
	echo "logs of the daemon and the supervisor, if it fails: $logs"
	GANTRY_TEST_LOGS=$logs GANTRY_CHAOS_TIME=${GANTRY_CHAOS_TIME:-10m} go test -count=1 -timeout 12h -v ./test/chaos
}
tools() { nice -n 19 hack/build.sh critest kubelet; }
kubelet() { hack/build.sh kubelet && go test -count=1 -timeout 10m ./test/kubelet; }
critest() { hack/build.sh critest && go test -count=1 -timeout 20m -v ./test/critest; }
vm() { hack/test-vm.sh; }
reset() { go test -count=1 -timeout 2h -v ./test/reset; }
vm-systemd() { hack/test-vm.sh systemd; }

readonly all=(lint unit e2e vm-systemd critest tools kubelet vm) more=(network crash crash-matrix chaos reset)
# These begin together: systemd's guest leaves a part of the machine idle, critest mostly waits, and tools takes what is left.
readonly together=' vm-systemd critest tools '
stages=("$@")
((${#stages[@]})) || stages=("${all[@]}")
for stage in "${stages[@]}"; do
	[[ " ${all[*]} ${more[*]} " == *" $stage "* ]] || die "no stage $stage: there are ${all[*]} ${more[*]}"
done

need_root
hack/install-deps.sh test && hack/build.sh || exit 1
GANTRY_TEST_RUNTIME=$(find_runc) # for the packages' own tests; the harness asks find_runc itself
export GANTRY_TEST_RUNTIME PATH=$PATH:$PWD/bin

tmp=$(mktemp -d)
declare -A pids=() # of the stages that have begun; each is a process group
trap 'for pid in "${pids[@]}"; do kill -- "-$pid"; done 2>/dev/null; rm -rf "$tmp"' EXIT

# run STAGE: the last line says how it ended.
run() {
	local start=$SECONDS result=passed
	"$1" || result=FAILED
	printf '%-10s %-7s %4d s\n' "$1" $result $((SECONDS - start)) >"$tmp/$1.summary"
}

said=() failed=0
for stage in "${stages[@]}"; do
	for next in "${stages[@]}"; do
		[[ $next == "$stage" || $together == *" $stage "* && $together == *" $next "* ]] && [[ ! -e $tmp/$next ]] || continue
		: >"$tmp/$next" # before it is looked for
		set -m
		run "$next" >>"$tmp/$next" 2>&1 </dev/null &
		set +m
		pids[$next]=$!
	done
	echo "--- $stage"
	tail -n +1 -s 0.2 -f --pid="${pids[$stage]}" "$tmp/$stage"
	unset "pids[$stage]"
	result=$(awk '{print $2}' "$tmp/$stage.summary")
	if [[ $result != passed ]]; then
		failed=1
		said+=("--- $stage failed" "$(awk -f hack/failures.awk "$tmp/$stage")")
	fi
	if grep -aq '^FLAKY: ' "$tmp/$stage"; then said+=("--- $stage $result, but not at the first time did" "$(grep -a '^FLAKY: ' "$tmp/$stage")"); fi
done
((!${#said[@]})) || printf '%s\n' "${said[@]}"
echo "--- summary"
for stage in "${stages[@]}"; do cat "$tmp/$stage.summary"; done
exit $failed
