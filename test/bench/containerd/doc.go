// Package containerd starts the peer that Gantry is measured beside. Everything of it lies beneath one folder, and it
// ends with its owner; it is meant for the namespaces of package harness, for its pods' bridge and rules are the node's.
package containerd
