package streaming

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// trackedConn is a client's connection after the upgrade. It is the session's,
// who closes it whatever the layers above have done, and it knows when
// something last went over it.
type trackedConn struct {
	net.Conn
	early []byte       // what came together with the request; the reader's
	since time.Time    // an arbitrary moment that last counts from
	last  atomic.Int64 // nanoseconds
}

func (c *trackedConn) touch() { c.last.Store(int64(time.Since(c.since))) }

// idle is how long nothing has gone over the connection.
func (c *trackedConn) idle() time.Duration { return time.Since(c.since) - time.Duration(c.last.Load()) }

func (c *trackedConn) Read(p []byte) (n int, err error) {
	if len(c.early) > 0 {
		n = copy(p, c.early)
		c.early = c.early[n:]
		return n, nil
	}
	if n, err = c.Conn.Read(p); n > 0 {
		c.touch()
	}
	return n, err
}

func (c *trackedConn) Write(p []byte) (n int, err error) {
	if n, err = c.Conn.Write(p); n > 0 {
		c.touch()
	}
	return n, err
}

// NetConn is what the connection wraps, as of tls.Conn.
func (c *trackedConn) NetConn() net.Conn { return c.Conn }

// CloseWrite tells the client that nothing more will come.
func (c *trackedConn) CloseWrite() error {
	closeWrite(c.Conn)
	return nil
}

// closeWrite does so for connections that can.
func closeWrite(conn net.Conn) {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite() // at the end of a session; the connection is closed in any case
	}
}

// Frames that say nothing and ask for no answer.
var (
	nothingSPDY      = []byte{0x80, 3, 0, 4, 0, 0, 0, 4, 0, 0, 0, 0} // no settings
	nothingWebSocket = []byte{0x8a, 0}                               // a pong that was not asked for
)

// stillThere returns errGone when the client has closed a connection of which
// nothing is read at present, and which would therefore not show it: with a
// full window, not even the client's FIN gets through. So it sends nothing, a
// frame, which a closed socket resets the connection for. It must not be a
// ping: clients answer in turn with their input, which does not get through.
//
// writing is held by whoever writes to the connection. If somebody does, the
// reset will come of that.
func stillThere(conn net.Conn, writing *sync.Mutex, nothing []byte) error {
	for {
		if tracked, ok := conn.(*trackedConn); ok && writing.TryLock() {
			_, err := tracked.Conn.Write(nothing) // past tracked: it is no use of the connection
			writing.Unlock()
			if err != nil {
				return errGone
			}
		}
		inner, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		conn = inner.NetConn()
	}
	fds := []unix.PollFd{{Events: unix.POLLRDHUP}}
	if err := control(conn, func(fd uintptr) {
		fds[0].Fd = int32(fd)
		_, _ = unix.Poll(fds, 0) // an error leaves Revents 0: not known to be gone
	}); err != nil {
		return err // closed
	}
	if fds[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0 {
		return errGone
	}
	return nil
}

// unsent is how many bytes, of those that were written, the client's kernel has not taken yet.
func unsent(conn net.Conn) (n int) {
	for {
		inner, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		conn = inner.NetConn()
	}
	_ = control(conn, func(fd uintptr) {
		n, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) // 0 if it fails
	})
	return n
}

// control calls f with the descriptor of a socket; of what is none, not at all.
// The error is of a connection that is closed.
func control(conn net.Conn, f func(fd uintptr)) error {
	sock, ok := conn.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sock.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(f)
}

// hijacker hands the connection of a request over as a trackedConn.
type hijacker struct {
	http.ResponseWriter
	conn *trackedConn // set by Hijack
}

// Hijack implements http.Hijacker.
func (h *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	inner, ok := h.ResponseWriter.(http.Hijacker)
	if !ok {
		return nil, nil, errors.New("this connection cannot be upgraded")
	}
	conn, buffered, err := inner.Hijack()
	if err != nil {
		return nil, nil, fmt.Errorf("taking the connection over: %w", err)
	}
	h.conn = &trackedConn{Conn: conn, since: time.Now()}
	if n := buffered.Reader.Buffered(); n > 0 {
		early, _ := buffered.Reader.Peek(n)
		h.conn.early = append([]byte(nil), early...)
	}
	_ = conn.SetDeadline(time.Time{}) // that of the request's head
	return h.conn, buffered, nil
}
