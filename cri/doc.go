// Package cri is the gRPC edge: the socket that the kubelet and crictl connect
// to, and what is the same for every call. It knows no meaning: the services
// that answer are handed to [Serve].
//
// A call goes through these, from the outside in:
//
//	log       one line for each call that changes something, at V(4) for the others
//	errors    error kinds of package errdefs -> gRPC codes (errors.go), the only place that knows codes
//	recover   a panic becomes Internal, its stack is logged, the daemon lives on
//	deadline  calls that change something end, whatever the client asked for
//	validate  required fields, and names and paths that could be taken for something else
//
// Beside the CRI there is a service of Gantry's own, package transfer.
//
// On disk there are the socket (0660) and beside it its lock, <socket>.lock,
// which tells a socket that a killed daemon left from one in use. The lock file
// stays for ever; removing it would let two daemons hold locks of one name.
package cri
