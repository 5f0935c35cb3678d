#!/usr/bin/env bash
# Runs the tests: all stages, or those named: lint unit e2e critest kubelet vm vm-systemd. As root; installs what is
# missing.
#   unit   every package's own tests under the race detector, with those that need root
#   e2e    a real gantry driven over its CRI socket, with network and crash
#   network  that alone: its pods, the node and another host ask each other, over real namespaces
#   crash    that alone: the daemon or the supervisor killed at some of the changes that it makes in RPCs (docs/reliability.md)
#   crash-matrix  the same at all of them: an hour on a quiet machine; GANTRY_CRASH_ALL=REGEXP for those of some operations
#   chaos    random operations under random kills of daemon and supervisor, for GANTRY_CHAOS_TIME (10m); GANTRY_CHAOS_SEED
#   critest  the Kubernetes conformance suite against a real gantry
#   kubelet  a real kubelet's static pods on a real gantry (the kubelet is built once: three minutes on two cores)
#   vm       e2e, critest and other tests that need a kernel, on cgroup v2 in a virtual machine (hack/test-vm.sh)
#   vm-systemd  a choice of them with the systemd cgroup driver
#   reset    a virtual machine is reset in storms of requests (test/reset). Not one of all: under emulation it takes many
#            minutes where something else runs, and depends on qemu's own resets
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
unit() { go list ./... | grep -v -e '/test/e2e$' -e '/test/network$' -e '/test/crash$' -e '/test/critest$' -e '/test/kubelet$' -e '/test/chaos$' -e '/test/reset$' | xargs hack/gotest.sh -race -timeout=10m; }
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
kubelet() { hack/build.sh kubelet && go test -count=1 -timeout 10m ./test/kubelet; }
critest() { hack/build.sh critest && go test -count=1 -timeout 20m -v ./test/critest; }
vm() { hack/test-vm.sh; }
reset() { go test -count=1 -timeout 2h -v ./test/reset; }
vm-systemd() { hack/test-vm.sh systemd; }

readonly all=(lint unit e2e critest kubelet vm vm-systemd) more=(network crash crash-matrix chaos reset)
stages=("$@")
((${#stages[@]})) || stages=("${all[@]}")
for stage in "${stages[@]}"; do
	[[ " ${all[*]} ${more[*]} " == *" $stage "* ]] || die "no stage $stage: there are ${all[*]} ${more[*]}"
done

need_root
hack/install-deps.sh test && hack/build.sh || exit 1
GANTRY_TEST_RUNTIME=$(find_runc) # for the packages' own tests; the harness asks find_runc itself
export GANTRY_TEST_RUNTIME PATH=$PATH:$PWD/bin

output=$(mktemp)
trap 'rm -f "$output"' EXIT
summary=() said=() failed=0
for stage in "${stages[@]}"; do
	echo "--- $stage"
	start=$SECONDS result=passed
	if ! "$stage" 2>&1 | tee "$output"; then
		result=FAILED failed=1
		said+=("--- $stage failed" "$(awk -f hack/failures.awk "$output")")
	fi
	if grep -aq '^FLAKY: ' "$output"; then said+=("--- $stage $result, but not at the first time did" "$(grep -a '^FLAKY: ' "$output")"); fi
	summary+=("$(printf '%-10s %-7s %4d s' "$stage" "$result" $((SECONDS - start)))")
done
((!${#said[@]})) || printf '%s\n' "${said[@]}"
echo "--- summary"
printf '%s\n' "${summary[@]}"
exit $failed
