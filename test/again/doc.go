// Package again has the test of hack/gotest.sh, which runs a failed test once more: what may pass thereby, and what may
// not.
package again
