package streaming

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// heldConn is a client's connection of which, while hold is set, nothing is read.
type heldConn struct {
	net.Conn
	hold atomic.Pointer[chan struct{}]
}

func (c *heldConn) Read(p []byte) (int, error) {
	if hold := c.hold.Load(); hold != nil {
		<-*hold
	}
	return c.Conn.Read(p)
}

// A client that goes on to send, as kubectl does with pings, and reads later
// than the session has ended, has all its output and its exit code.
func TestSlowReaderGetsAll(t *testing.T) {
	t.Parallel()
	const size = 1 << 20 // more than the client's window, less than waits in the server's socket
	s := serve(t, testConfig(), fakeRuntime{exec: func(_ context.Context, _ *runtimeapi.ExecRequest, s Streams) (int, error) {
		_, _ = io.ReadFull(s.Stdin, make([]byte, 1))
		_, err := s.Stdout.Write(make([]byte, size))
		return 3, err
	}})
	talk := func(t *testing.T, send func() error) { // for longer than a client may take to leave
		for range 2 + 2*linger/(50*time.Millisecond) {
			time.Sleep(50 * time.Millisecond)
			if err := send(); err != nil {
				t.Fatalf("the connection is closed: %v", err)
			}
		}
	}
	check := func(t *testing.T, stdout int, fault []byte) {
		if stdout != size || exitCode(t, fault) != 3 {
			t.Errorf("stdout of %d bytes, error stream %q", stdout, fault)
		}
	}
	t.Run("SPDY", func(t *testing.T) {
		conn, _ := upgrade(t, execURL(t, s, all), http.Header{"X-Stream-Protocol-Version": {protocolV4}})
		must(0, conn.(*net.TCPConn).SetReadBuffer(64<<10))(t)
		held, hold := &heldConn{Conn: conn}, make(chan struct{})
		c := newSPDYClient(t, held)
		fault, in := c.stream(t, "streamType", "error"), c.stream(t, "streamType", "stdin")
		out, _ := c.stream(t, "streamType", "stdout"), c.stream(t, "streamType", "stderr")
		held.hold.Store(&hold)
		must(in.Write([]byte("x")))(t)
		ping := controlFrame(6, 99)
		talk(t, func() error { _, err := conn.Write(ping); return err })
		close(hold)
		n := must(io.Copy(io.Discard, out))(t)
		check(t, int(n), must(io.ReadAll(fault))(t))
	})
	t.Run("WebSocket", func(t *testing.T) {
		ws := dialWS(t, execURL(t, s, all), protocolV5)
		must(0, ws.NetConn().(*net.TCPConn).SetReadBuffer(64<<10))(t)
		talk(t, func() error { return ws.WriteMessage(websocket.BinaryMessage, []byte("\x00x")) })
		got := readWS(t, ws)
		check(t, len(got.stdout), got.fault)
	})
}

// A client that does not read its output does not hold up its input thereby,
// also when it pings: the answers wait, and the input does not wait for them.
func TestPingsOfSlowReader(t *testing.T) {
	const size = 32 << 20
	taken := make(chan error, 1)
	s := serve(t, testConfig(), fakeRuntime{exec: func(ctx context.Context, req *runtimeapi.ExecRequest, s Streams) (int, error) {
		var writer sync.WaitGroup
		writer.Go(func() {
			for {
				if _, err := s.Stdout.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		})
		_, err := io.CopyN(io.Discard, s.Stdin, size)
		taken <- err
		writer.Wait()
		return 0, err
	}})
	for name, dial := range map[string]func() (conn io.Closer, send func(p []byte) error){
		"SPDY": func() (io.Closer, func(p []byte) error) {
			c := allStreams(t, s, "c") // whose library reads no more when a stream is full
			ping := controlFrame(6, 99)
			return c.conn, func(p []byte) error {
				must(0, c.conn.SetWriteDeadline(time.Now().Add(time.Minute)))(t)
				if _, err := c.conn.Write(ping); err != nil {
					return err
				}
				_, err := c.FindStream(3).Write(p)
				return err
			}
		},
		"WebSocket": func() (io.Closer, func(p []byte) error) {
			ws := dialWS(t, execURL(t, s, all), protocolV5)
			return ws, func(p []byte) error {
				must(0, ws.SetWriteDeadline(time.Now().Add(time.Minute)))(t)
				if err := ws.WriteMessage(websocket.PingMessage, []byte("p")); err != nil {
					return err
				}
				return ws.WriteMessage(websocket.BinaryMessage, append([]byte{0}, p...))
			}
		},
	} {
		conn, send := dial()
		for sent := 0; sent < size; sent += 32 << 10 {
			if err := send(make([]byte, 32<<10)); err != nil {
				t.Fatalf("%s: after %d bytes, held up %v: %v", name, sent, errors.Is(err, os.ErrDeadlineExceeded), err)
			}
		}
		if err := <-taken; err != nil {
			t.Errorf("%s: %v", name, err)
		}
		_ = conn.Close()
	}
}
