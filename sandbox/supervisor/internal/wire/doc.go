// Package wire carries messages between the daemon and the supervisor: frames
// of JSON with file descriptors beside them, on a Unix stream socket.
// ../../PROTOCOL.md describes the protocol.
package wire
