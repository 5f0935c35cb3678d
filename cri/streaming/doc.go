// Package streaming is the server behind the URLs that Exec, Attach and
// PortForward answer: HTTP, upgraded to SPDY/3.1 or WebSocket, as the kubelet,
// kubectl, crictl and browsers behind an API server speak it.
//
// [Listen] binds an address, [Server.Exec] and its like give out URLs, each
// with a token for one client (token.go), and [Server.Serve] answers until its
// context ends. Who has shown a token has a session (handler.go, hold): the
// goroutine of the request owns the connection, a second one reads it, and the
// session's context ends when either does. Both have ended, and the connection
// is closed, before the session counts as ended; Serve waits for all.
//
//	command.go      exec and attach: streams, resizes, what became of the command
//	portforward.go  pairs of streams for connections to ports
//	spdy.go         streams over SPDY; spdysend.go: control frames to the client
//	websocket.go    channels over WebSocket, and SPDY in a WebSocket
//	inbox.go        what a client has sent and nobody has read yet
//	conn.go         the connection: when it was last used, whether the client is there
//
// # Protocols
//
// Exec and attach speak SPDY with v4, v3, v2 and the unversioned
// channel.k8s.io, and WebSocket with v5, v4 and the unversioned one, binary and
// base64. Only SPDY and v5 have a half-close of stdin. Port-forward speaks SPDY,
// SPDY in a WebSocket (SPDY/3.1+portforward.k8s.io, as kubectl does) and the
// WebSocket channels of v4, whose ports are those of the CRI's request.
//
// # Rationale
//
// k8s.io/cri-streaming is not used, though others use it: what clients may do
// to it cannot be bounded from outside. It, or spdystream below it,
//
//   - keeps a goroutine for each stream that a client opens late, and one for
//     each stream that is reset before it is answered, until the daemon ends;
//   - calls a nil function when a client opens as many streams as it should, but
//     not the error stream;
//   - reads data frames of 16 MiB whole, and queues 250 of them;
//   - does not close the connection when the streams do not come in time, gives
//     port-forwards a context that never ends, and does not tell anybody that a
//     client without stdin has gone;
//   - has no v5 and no SPDY in WebSockets, and tokens of 48 bits.
//
// k8s.io/streaming, its SPDY half, is the same spdystream. So what is used of
// others is what parses: package spdy of spdystream for control frames, which
// are bounded before it sees them, and gorilla/websocket. A data frame goes
// from the socket to its stream in pieces of 32 KiB and is never whole in memory:
// a gibibyte into a forwarded port takes 0.7 of the library's time, and 5 MB of
// allocations where the library, client included in both, makes 1 GB.
//
// SPDY's windows are not used, since no client of Kubernetes does: the streams
// of one connection share its backpressure, and a stream that nobody reads may
// hold 1 MiB before it holds up the others.
package streaming
