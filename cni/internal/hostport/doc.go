// Package hostport tells whether a process of the node serves a port that a pod wants to have as its host port.
//
// NAT comes before sockets: a host port that a process has too would take the node's own traffic from it, sshd's for
// one, and nothing would say so. The question is a bind of a socket that is closed at once, some microseconds; who
// the holder is, is looked for only when there is one.
//
// It is asked once. A process that binds the port later does not get its traffic while the pod has it.
package hostport
