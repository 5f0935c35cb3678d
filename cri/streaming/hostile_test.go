package streaming

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/moby/spdystream/spdy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// rawControl is a SPDY control frame that announces length.
func rawControl(kind uint16, length uint32, payload ...byte) []byte {
	frame := binary.BigEndian.AppendUint16(nil, 0x8003)
	frame = binary.BigEndian.AppendUint16(frame, kind)
	return append(binary.BigEndian.AppendUint32(frame, length), payload...)
}

// synStream is a whole SYN_STREAM frame, made by package spdy.
func synStream(t testing.TB, id spdy.StreamId, header http.Header) []byte {
	t.Helper()
	var out bytes.Buffer
	framer := must(spdy.NewFramer(&out, nil))(t)
	must(0, framer.WriteFrame(&spdy.SynStreamFrame{StreamId: id, Headers: header}))(t)
	return out.Bytes()
}

// Frames that announce or unpack to more than there can be drop the connection,
// and cost no memory. CVE-2026-35469 is of spdystream before 0.5.1.
func TestSecurityFrames(t *testing.T) {
	s := serve(t, testConfig(), stubborn)
	many := http.Header{}
	for i := range 10_000 {
		many.Set("h"+strconv.Itoa(i), "x")
	}
	settings := rawControl(4, 4, 0xff, 0xff, 0xff, 0xff)
	for name, frame := range map[string][]byte{
		"settings":          settings,
		"settings-rest":     rawControl(4, 12, make([]byte, 12)...),
		"settings-long":     rawControl(4, 0xffffff, 0x7f, 0xff, 0xff, 0xff),
		"headers-long":      rawControl(8, 0xffffff, 0, 0, 0, 1),
		"syn-stream-long":   rawControl(1, 0xffffff, 0, 0, 0, 1),
		"syn-stream-short":  rawControl(1, 0),
		"headers-garbage":   rawControl(8, 12, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8),
		"headers-many":      synStream(t, 1, many),
		"header-large":      synStream(t, 1, http.Header{"a": {strings.Repeat("a", 16<<20)}}),
		"stream-even":       synStream(t, 2, http.Header{"streamtype": {"error"}}),
		"stream-zero":       rawControl(1, 10, make([]byte, 10)...),
		"ping-zero":         rawControl(6, 4, 0, 0, 0, 0),
		"frame-unknown":     rawControl(77, 0),
		"data-unopened":     {0, 0, 0, 1, 0, 0, 0, 1, 0},
		"http-instead":      []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n" + strings.Repeat("\xff", 64)),
		"goaway-and-silent": rawControl(7, 8, make([]byte, 8)...),
	} {
		t.Run("CVE-2026-35469-"+name, func(t *testing.T) {
			before := allocated()
			conn, _ := upgrade(t, execURL(t, s, all), http.Header{"X-Stream-Protocol-Version": {protocolV4}})
			_, _ = conn.Write(frame)
			_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
			if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the connection is held")
			}
			if grown := allocated() - before; grown > 4<<20 {
				t.Errorf("%d bytes were allocated", grown)
			}
		})
	}
}

// allocated counts all bytes that were ever allocated, so nothing is collected unseen.
func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// Data that nobody reads is kept up to a bound, however large its frames say that they are.
func TestSecurityDataIsBounded(t *testing.T) {
	begun := make(chan struct{}, 1)
	s := serve(t, testConfig(), fakeRuntime{exec: func(ctx context.Context, _ *runtimeapi.ExecRequest, _ Streams) (int, error) {
		begun <- struct{}{}
		<-ctx.Done()
		return 0, ctx.Err()
	}})
	for name, send := range map[string]func(t *testing.T) net.Conn{
		"SPDY": func(t *testing.T) net.Conn {
			c := allStreams(t, s, "c")
			_, _ = c.conn.Write([]byte{0, 0, 0, 3, 0, 0xff, 0xff, 0xff}) // one frame of 16 MiB
			return c.conn
		},
		"WebSocket": func(t *testing.T) net.Conn {
			ws := dialWS(t, execURL(t, s, all), protocolV5)
			head := append([]byte{0x82, 0xff}, binary.BigEndian.AppendUint64(nil, 1<<40)...) // one message of 1 TiB
			_, _ = ws.NetConn().Write(append(head, 0, 0, 0, 0, 0))
			return ws.NetConn()
		},
	} {
		t.Run("2.7-unread-"+name, func(t *testing.T) {
			conn := send(t)
			<-begun
			before := allocated()
			for sent := 0; sent < 16<<20; {
				_ = conn.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
				n, err := conn.Write(make([]byte, 64<<10))
				if sent += n; err != nil {
					break // the server reads no more: what has been sent beyond the inbox is in sockets
				}
			}
			if grown := allocated() - before; grown > 3*inboxSize+(16<<20) { // the test's own writes are of constant memory
				t.Errorf("%d bytes were allocated", grown)
			}
			_ = conn.Close()
		})
	}
}

// A client that vanishes while its input is full is noticed, though nothing is
// read of its connection then, and its FIN waits behind what the window lets through.
func TestGoneWithFullInput(t *testing.T) {
	t.Parallel()
	ended := make(chan error, 1)
	s := serve(t, testConfig(), wait(ended))
	flood := func(deadline func(time.Time) error, send func([]byte) error) {
		for {
			_ = deadline(time.Now().Add(300 * time.Millisecond))
			if send(make([]byte, 64<<10)) != nil {
				return
			}
		}
	}
	for name, begin := range map[string]func() net.Conn{
		"SPDY": func() net.Conn {
			c := allStreams(t, s, "c")
			flood(c.conn.SetWriteDeadline, func(p []byte) error { _, err := c.FindStream(3).Write(p); return err })
			return c.conn
		},
		"WebSocket": func() net.Conn {
			ws := dialWS(t, execURL(t, s, all), protocolV5)
			flood(ws.SetWriteDeadline, func(p []byte) error { return ws.WriteMessage(websocket.BinaryMessage, p) })
			return ws.NetConn()
		},
	} {
		for _, reset := range []bool{false, true} {
			conn := begin()
			if reset {
				must(0, conn.(*net.TCPConn).SetLinger(0))(t)
			}
			_ = conn.Close()
			if err := <-ended; !errors.Is(err, errGone) {
				t.Errorf("%s, reset %v: %v", name, reset, err)
			}
		}
	}
}

// Waiting for room in a full inbox is no use of the connection: it gets idle all the same, and the client is told.
func TestIdleWithFullInput(t *testing.T) {
	t.Parallel()
	cfg := testConfig()
	cfg.IdleTimeout = 3 * gonePoll
	ended := make(chan error, 1)
	s := serve(t, cfg, wait(ended))
	c := allStreams(t, s, "c")
	go func() { // ends with the connection
		for {
			if _, err := c.FindStream(3).Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	}()
	if err := <-ended; !errors.Is(err, errIdle) {
		t.Error(err)
	}
}

// The half-close names one channel that there is; else the connection is dropped.
func TestCloseSignal(t *testing.T) {
	s := serve(t, testConfig(), echo(0))
	for message, good := range map[string]bool{"\xff\x00": true, "\xff\x01\x00": false, "\xff": false, "\xff\x05": false, "\xff\xff": false} {
		ws := dialWS(t, execURL(t, s, all), protocolV5)
		must(0, ws.WriteMessage(websocket.BinaryMessage, []byte("\x00x")))(t)
		if good {
			must(0, ws.WriteMessage(websocket.BinaryMessage, []byte("\xff\x01")))(t) // closing an output says nothing
		}
		must(0, ws.WriteMessage(websocket.BinaryMessage, []byte(message)))(t)
		var err error
		for err == nil {
			_, _, err = ws.ReadMessage()
		}
		if websocket.IsCloseError(err, websocket.CloseNormalClosure) != good {
			t.Errorf("%q: %v", message, err)
		}
	}
}

// inMemory is a channelConn without a WebSocket, and what its channels got.
func inMemory(protocol string) *channelConn {
	c := &channelConn{channels: make([]*channel, channelResize+1), halfClose: protocol == protocolV5, base64: protocol == protocolV4Base64}
	for _, id := range []byte{channelStdin, channelResize} {
		c.channel(id, newInbox())
	}
	return c
}

// Whatever a message is, at most its own bytes reach a channel, in their order.
func FuzzMessage(f *testing.F) {
	for _, seed := range []string{"", "\x00", "\x00hello", "\xff\x00", "\xff\x00\x00", "\xff", "\x04{}", "\x09x", "0aGVsbG8=", "0!!", "/x"} {
		f.Add([]byte(seed), false)
		f.Add([]byte(seed), true)
	}
	f.Fuzz(func(t *testing.T, message []byte, inBase64 bool) {
		if len(message) > inboxSize/2 {
			return
		}
		protocol := protocolV5
		if inBase64 {
			protocol = protocolV4Base64
		}
		c := inMemory(protocol)
		err := c.receive(bytes.NewReader(message))
		var got []byte
		for _, chunk := range c.channels[channelStdin].in.queue {
			got = append(got, chunk...)
		}
		closed := c.channels[channelStdin].in.err != nil
		switch {
		case len(got) > 0 && !inBase64 && (message[0] != 0 || !bytes.Equal(got, message[1:])):
			t.Errorf("%q of %q", got, message)
		case len(got) > len(message):
			t.Errorf("%d bytes of %d", len(got), len(message))
		case closed != (!inBase64 && string(message) == "\xff\x00"):
			t.Errorf("closed %v by %q", closed, message)
		case err != nil && closed:
			t.Errorf("%v, and closed", err)
		}
	})
}

// Whatever a stream of resizes holds, only sizes come of it, and little is kept.
func FuzzResizes(f *testing.F) {
	for _, seed := range []string{`{"Width":80,"Height":24}`, `{"Width":0,"Height":0}{"Width":1,"Height":2}`, "{", "}", `{"Width":1e9}`, "\n\n", `{"Width":{}}`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		sizes := make(chan TerminalSize, 1)
		_ = readResizes(strings.NewReader(text), sizes)
		if len(sizes) == 1 {
			if size := <-sizes; size.Width == 0 || size.Height == 0 {
				t.Errorf("%v of %q", size, text)
			}
		}
	})
}

// Whatever a client sends after the upgrade, the server's reading ends with the connection.
func FuzzFrames(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 1, 0, 0, 1, 'x'})
	f.Add(rawControl(6, 4, 0, 0, 0, 1))
	f.Add(synStream(f, 1, http.Header{"streamtype": {"stdin"}}))
	f.Add(append(synStream(f, 1, http.Header{"streamtype": {"stdin"}}), 0, 0, 0, 1, 1, 0, 0, 1, 'x'))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > inboxSize/2 {
			return
		}
		var streams []*spdyStream
		c := newSPDY(&memoryConn{Reader: bytes.NewReader(data)}, func(s *spdyStream) (func(), error) {
			if len(streams) == 5 {
				return nil, errEnded
			}
			streams = append(streams, s)
			return func() {}, nil
		})
		_ = c.serve()
		c.goodbye()
		total := 0
		for _, s := range streams {
			got, err := io.ReadAll(s)
			if err == nil && s.in.err != io.EOF {
				t.Errorf("%v has ended without an end", s.headers)
			}
			total += len(got)
		}
		if total > len(data) {
			t.Errorf("%d bytes of %d", total, len(data))
		}
	})
}

// memoryConn is a connection that has sent all that it will.
type memoryConn struct {
	net.Conn
	io.Reader
}

func (c *memoryConn) Read(p []byte) (int, error)  { return c.Reader.Read(p) }
func (c *memoryConn) Write(p []byte) (int, error) { return len(p), nil }
func (c *memoryConn) Close() error                { return nil }
