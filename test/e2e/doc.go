// Package e2e drives a real gantry over its CRI socket, as the kubelet does, and looks at the result from inside
// the containers and from the host. It needs root; see package harness for what every test is checked for when
// it ends. The package holds tests only.
package e2e
