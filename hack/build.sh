#!/usr/bin/env bash
# Builds the product: bin/gantry and bin/gantry-supervisor, static, with the version from git (GANTRY_TEST_BIN: not in bin/).
# With names as arguments builds these tools instead: crictl, critest, kubelet, runc (from their pinned Go modules).
set -euo pipefail
cd "$(dirname "$0")/.."

# Where all of it was built before and Go is missing, such as in the virtual machine of test-vm.sh.
[[ -z ${GANTRY_TEST_PREBUILT:-} ]] || exit 0

cri_tools=$(go list -C hack/tools -m -f '{{.Version}}' sigs.k8s.io/cri-tools)
readonly cri_tools runc=v1.5.2

product() {
	local version
	version=$(git describe --tags --always --dirty 2>/dev/null || echo unknown)
	CGO_ENABLED=0 go build -buildvcs=false -trimpath -ldflags "-s -w -X main.version=$version" -o "${GANTRY_TEST_BIN:-bin}/" ./cmd/...
}

# tool NAME VERSION: built anew only when its version or Go's has changed; the stamp beside it says which it was, and is
# locked, as stages of hack/test.sh want the same tool at once.
tool() {
	local name=$1 version=$2 want
	want="$version $(go env GOVERSION)"
	mkdir -p bin
	exec {stamp}>>"bin/.$name"
	flock "$stamp"
	[[ -x bin/$name && $(cat "bin/.$name" 2>/dev/null) == "$want" ]] && return
	echo "building $name $version"
	"build_$name" "$version"
	echo "$want" >"bin/.$name"
}

build_crictl() {
	CGO_ENABLED=0 go build -C hack/tools -trimpath -ldflags "-s -w -X sigs.k8s.io/cri-tools/pkg/version.Version=$cri_tools" \
		-o ../../bin/crictl sigs.k8s.io/cri-tools/cmd/crictl
}

build_critest() {
	CGO_ENABLED=0 go test -C hack/tools -c -trimpath -ldflags "-s -w -X sigs.k8s.io/cri-tools/pkg/version.Version=$cri_tools" \
		-o ../../bin/critest sigs.k8s.io/cri-tools/cmd/critest
}

# runc's start-up and its seccomp support are C; linked statically it runs on any distribution.
build_runc() {
	GOBIN=$PWD/bin CGO_ENABLED=1 go install -trimpath -tags seccomp,osusergo,netgo \
		-ldflags "-s -w -extldflags -static -X main.version=${runc#v}" "github.com/opencontainers/runc@$runc"
}

# Without optimisation, which takes a quarter off the minutes that two cores need; nothing here waits for the kubelet.
build_kubelet() {
	local version=k8s.io/component-base/version
	CGO_ENABLED=0 go build -C test/kubelet/build -trimpath -gcflags 'all=-N -l' \
		-ldflags "-s -w -X $version.gitVersion=$1 -X $version.gitMajor=1 -X $version.gitMinor=36" \
		-o ../../../bin/kubelet k8s.io/kubernetes/cmd/kubelet
}

(($#)) || product
for name in "$@"; do
	case $name in
	crictl | critest) tool "$name" "$cri_tools" ;;
	kubelet) tool kubelet "$(go list -C test/kubelet/build -m -f '{{.Version}}' k8s.io/kubernetes)" ;;
	runc) tool runc $runc ;;
	*) echo "build.sh: no tool $name: there are crictl critest kubelet runc" >&2 && exit 1 ;;
	esac
done
