// Package audit compares what an instance lists with what it has on the node, pod by pod, while pods are there: what
// package harness finds left over only when all of them are gone.
package audit
