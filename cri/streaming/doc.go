// Package streaming is the server behind the URLs that Exec, Attach and
// PortForward answer: HTTP upgraded to SPDY/3.1 or WebSocket.
package streaming
