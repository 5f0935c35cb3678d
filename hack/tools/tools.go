//go:build tools

// Package tools pins the versions of the programs that the project is checked with. They live in a module
// of their own so that nothing of theirs enters the product's go.mod.
//
// crictl and staticcheck are tool directives of go.mod and run with `go tool -modfile=hack/tools/go.mod NAME`.
// critest is a test binary (`go test -c sigs.k8s.io/cri-tools/cmd/critest`), which no tool directive can name:
// the imports below keep what it needs in go.mod.
package tools

import (
	_ "sigs.k8s.io/cri-tools/pkg/benchmark"
	_ "sigs.k8s.io/cri-tools/pkg/common"
	_ "sigs.k8s.io/cri-tools/pkg/framework"
	_ "sigs.k8s.io/cri-tools/pkg/validate"
)
