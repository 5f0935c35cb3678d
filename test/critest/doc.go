// Package critest runs the Kubernetes CRI conformance suite, at the version that hack/tools pins, against a real
// gantry with the project's own registry of test images. skips.txt lists every spec that may be skipped and why.
// The networking specs run a second time, with pods connected by CNI's own plugins, and those of
// streaming over WebSockets. The package holds tests only.
package critest
