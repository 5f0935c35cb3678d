# Thin on purpose: each target is one script of hack/, so that every step also runs without make.

.DEFAULT_GOAL := help
.PHONY: help build demo test lint critest bench crictl clean

help:     ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build:    ## build bin/gantry and bin/gantry-supervisor
	@hack/build.sh

demo:     ## show a pod from pull to removal, on this machine (root; installs what is missing)
	@hack/demo.sh

test:     ## lint, unit, root, end-to-end tests and critest (root; installs what is missing)
	@hack/test.sh

lint:     ## gofmt, go vet, staticcheck
	@hack/lint.sh

critest:  ## the Kubernetes CRI conformance suite against a real instance (root)
	@hack/test.sh critest

bench:    ## Go benchmarks, then pod, exec, log and pull figures of a real instance (root)
	@hack/bench.sh

crictl:   ## build bin/crictl, to talk to a gantry
	@hack/build.sh crictl

clean:    ## remove everything that was built
	@hack/clean.sh
