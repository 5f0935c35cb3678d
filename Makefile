# Thin on purpose: each target is one script of hack/, so that every step also runs without make.

.DEFAULT_GOAL := help
.PHONY: help build install demo test test-net test-vm test-reset test-kubelet lint critest crash-matrix chaos guards fuzz bench bench-pull bench-net bench-log bench-recovery crictl clean bench-hang

help:     ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build:    ## build bin/gantry and bin/gantry-supervisor
	@hack/build.sh

install:  ## install the binaries and the systemd unit (PREFIX, /usr/local; DESTDIR)
	@hack/install.sh

demo:     ## show a pod from pull to removal, on this machine (root; installs what is missing)
	@hack/demo.sh

test:     ## lint, unit, root, end-to-end tests, critest and a kubelet (root; installs what is missing)
	@hack/test.sh

test-net: ## pods, the node and another host reach each other through a real instance, and nothing is left (root)
	@hack/test.sh network

test-vm:  ## the tests that need a kernel, on cgroup v2 in a virtual machine (root; ARGS: see hack/test-vm.sh)
	@hack/test-vm.sh $(ARGS)

test-reset: ## a virtual machine is reset in storms of pods and pulls, and its next start looked at (root; test/reset/doc.go)
	@hack/test.sh reset

test-kubelet: ## a real kubelet's static pods on a real instance (root)
	@hack/test.sh kubelet

lint:     ## gofmt, go vet, staticcheck
	@hack/lint.sh

critest:  ## the Kubernetes CRI conformance suite against a real instance (root)
	@hack/test.sh critest

crash-matrix: ## kill the daemon, or the supervisor, at every change that it makes in every RPC, and compare everything (root)
	@hack/test.sh crash-matrix

chaos:    ## random operations under random kills of daemon and supervisor, everything compared with a model (root; GANTRY_CHAOS_TIME=10m, GANTRY_CHAOS_SEED)
	@hack/test.sh chaos

guards:   ## take each security guard out in turn: a test must fail (root)
	@hack/guards.sh

fuzz:     ## every fuzz target for FUZZTIME (30s) each
	@hack/fuzz.sh

bench:    ## Go benchmarks, then pod, exec and log figures of a real instance (root)
	@hack/bench.sh

bench-pull: ## pulls measured against Debian's containerd, when it is installed (root)
	@hack/bench-pull.sh

bench-net: ## pods' networks measured against containerd, one pod and up to 500; draws the plot of docs/network.md (root)
	@hack/bench-net.sh

bench-log: ## containers' output to their logs measured against Debian's containerd and conmon, where installed (root)
	@hack/bench-log.sh

bench-recovery: ## 200 pods, kill -9, until the first exact list; beside containerd, when it was built for bench-net (root)
	@hack/bench-recovery.sh

bench-hang: ## an hour of a kubelet's polling beside what hangs: time of its calls, memory (root)
	@hack/bench-hang.sh

crictl:   ## build bin/crictl, to talk to a gantry
	@hack/build.sh crictl

clean:    ## remove everything that was built
	@hack/clean.sh
