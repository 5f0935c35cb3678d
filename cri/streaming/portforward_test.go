package streaming

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/moby/spdystream"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// shout answers each connection with its input in capitals once the input has
// ended, except on port 9, which fails.
var shout = fakeRuntime{forward: func(_ context.Context, pod string, port uint16, conn io.ReadWriteCloser) error {
	defer conn.Close()
	if port == 9 {
		return errors.New("connection refused")
	}
	in, err := io.ReadAll(conn)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(conn, "%s:%d %s", pod, port, bytes.ToUpper(in))
	return err
}}

func forwardURL(t testing.TB, s *Server, ports ...int32) string {
	t.Helper()
	return must(s.PortForward(&runtimeapi.PortForwardRequest{PodSandboxId: "p", Port: ports}))(t)
}

func (c *spdyClient) forward(t testing.TB, id, port int) (data, fault *spdystream.Stream) {
	t.Helper()
	header := []string{"port", strconv.Itoa(port), "requestID", strconv.Itoa(id)}
	fault = c.stream(t, append(header, "streamType", "error")...)
	data = c.stream(t, append(header, "streamType", "data")...)
	_ = fault.Close() // as kubectl does
	return data, fault
}

// dialTunnel returns the client's end of SPDY in a WebSocket.
func dialTunnel(t testing.TB, address string) *spdyClient {
	ws := dialWS(t, address, protocolTunnel, protocolV4)
	if ws.Subprotocol() != protocolTunnel {
		t.Fatalf("protocol %q", ws.Subprotocol())
	}
	return newSPDYClient(t, &tunnel{Conn: ws.NetConn(), ws: ws})
}

var dialForward = map[string]func(t testing.TB, address string) *spdyClient{
	"SPDY":   func(t testing.TB, address string) *spdyClient { return dialSPDY(t, address, protocolForward) },
	"tunnel": dialTunnel,
}

// Connections of one session do not wait for each other, have half-closes, and fail each for itself.
func TestPortForward(t *testing.T) {
	s := serve(t, testConfig(), shout)
	for name, dial := range dialForward {
		t.Run(name, func(t *testing.T) {
			c := dial(t, forwardURL(t, s))
			stuck, _ := c.forward(t, 0, 1) // never ends its input
			must(stuck.Write([]byte("x")))(t)
			var all sync.WaitGroup
			for i := 1; i <= 50; i++ {
				data, fault := c.forward(t, i, 80+i)
				all.Go(func() {
					_, _ = fmt.Fprintf(data, "hello %d", i)
					_ = data.Close()
					got, _ := io.ReadAll(data)
					if want := fmt.Sprintf("p:%d HELLO %d", 80+i, i); string(got) != want {
						t.Errorf("got %q, want %q", got, want)
					}
					if text, _ := io.ReadAll(fault); len(text) > 0 {
						t.Errorf("error %q", text)
					}
				})
			}
			all.Wait()
			data, fault := c.forward(t, 51, 9)
			if text := must(io.ReadAll(fault))(t); string(text) != "forwarding port 9: connection refused" {
				t.Errorf("error %q", text)
			}
			if got, _ := io.ReadAll(data); len(got) != 0 {
				t.Errorf("data %q", got)
			}
			must(0, stuck.Close())(t)
			if got := must(io.ReadAll(stuck))(t); string(got) != "p:1 X" {
				t.Errorf("got %q", got)
			}
		})
	}
}

// A thousand connections at a time, and no more than the bound.
func TestPortForwardMany(t *testing.T) {
	s := serve(t, testConfig(), shout)
	c := dialSPDY(t, forwardURL(t, s), protocolForward)
	var open []*spdystream.Stream
	for i := range maxForwards {
		data, _ := c.forward(t, i, 80)
		open = append(open, data)
	}
	if _, err := c.tryStream("port", "80", "requestID", "more", "streamType", "error"); err == nil {
		t.Errorf("connection %d is accepted", maxForwards+1)
	}
	var all sync.WaitGroup
	for _, data := range open {
		all.Go(func() { // at once, for a stream that is not read holds up this client's others
			_ = data.Close()
			if got, err := io.ReadAll(data); string(got) != "p:80 " {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
	all.Wait()
	c.forward(t, maxForwards, 80) // there is room again
}

func (c *spdyClient) tryStream(header ...string) (*spdystream.Stream, error) {
	h := http.Header{}
	for i := 0; i < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	s, err := c.CreateStream(h, nil, false)
	if err == nil {
		err = s.WaitTimeout(time.Minute)
	}
	return s, err
}

// Streams whose headers make no sense are refused, and so is what the request does not allow.
func TestPortForwardRefuses(t *testing.T) {
	s := serve(t, testConfig(), shout)
	c := dialSPDY(t, forwardURL(t, s, 80, 81), protocolForward)
	for _, header := range [][]string{
		{"requestID", "1", "streamType", "data"},
		{"port", "", "requestID", "1", "streamType", "data"},
		{"port", "0", "requestID", "1", "streamType", "data"},
		{"port", "-1", "requestID", "1", "streamType", "data"},
		{"port", "65536", "requestID", "1", "streamType", "data"},
		{"port", "82", "requestID", "1", "streamType", "data"},
		{"port", "80", "requestID", "1"},
		{"port", "80", "requestID", "1", "streamType", "stdin"},
	} {
		if _, err := c.tryStream(header...); err == nil {
			t.Errorf("%q is accepted", header)
		}
	}
	c.stream(t, "port", "80", "requestID", "1", "streamType", "data")
	for _, header := range [][]string{
		{"port", "80", "requestID", "1", "streamType", "data"},
		{"port", "81", "requestID", "1", "streamType", "error"},
	} {
		if _, err := c.tryStream(header...); err == nil {
			t.Errorf("a second %q is accepted", header)
		}
	}
}

// Clients of long ago give no request id: the error stream comes just before the data stream.
func TestPortForwardWithoutID(t *testing.T) {
	s := serve(t, testConfig(), shout)
	c := dialSPDY(t, forwardURL(t, s))
	for range 2 {
		c.stream(t, "port", "80", "streamType", "error")
		data := c.stream(t, "port", "80", "streamType", "data")
		_ = data.Close()
		if got := must(io.ReadAll(data))(t); string(got) != "p:80 " {
			t.Errorf("got %q", got)
		}
	}
}

// Half a connection is given up, and the session goes on.
func TestPortForwardExpires(t *testing.T) {
	t.Parallel()
	cfg := testConfig()
	cfg.CreationTimeout = 5 * time.Second // in which a slow machine's client opens two streams
	s := serve(t, cfg, shout)
	c := dialSPDY(t, forwardURL(t, s), protocolForward)
	lonely := c.stream(t, "port", "80", "requestID", "1", "streamType", "data")
	if _, err := io.ReadAll(lonely); err != nil {
		t.Error(err)
	}
	data, _ := c.forward(t, 1, 80)
	_ = data.Close()
	if got := must(io.ReadAll(data))(t); string(got) != "p:80 " {
		t.Errorf("got %q", got)
	}
}

// A client that resets a connection ends it for the runtime, which says nothing of it.
func TestPortForwardReset(t *testing.T) {
	errs := make(chan error, 2)
	s := serve(t, testConfig(), fakeRuntime{forward: func(_ context.Context, _ string, _ uint16, conn io.ReadWriteCloser) error {
		_, err := io.Copy(io.Discard, conn)
		errs <- err
		_, werr := conn.Write([]byte("x"))
		errs <- werr
		return err
	}})
	c := dialSPDY(t, forwardURL(t, s), protocolForward)
	data, fault := c.forward(t, 1, 80)
	must(0, data.Reset())(t)
	for range 2 {
		if err := <-errs; !errors.Is(err, errReset) {
			t.Error(err)
		}
	}
	if text, _ := io.ReadAll(fault); len(text) != 0 {
		t.Errorf("error %q", text)
	}
}

// Over the older channels the ports are the request's; each channel begins with its port.
func TestPortForwardChannels(t *testing.T) {
	s := serve(t, testConfig(), fakeRuntime{forward: func(_ context.Context, _ string, port uint16, conn io.ReadWriteCloser) error {
		defer conn.Close()
		if port == 9 {
			return errors.New("connection refused")
		}
		in := make([]byte, 5)
		if _, err := io.ReadFull(conn, in); err != nil {
			return err
		}
		_, err := fmt.Fprintf(conn, "%d:%s", port, in)
		return err
	}})
	ws := dialWS(t, forwardURL(t, s, 80, 9, 81), protocolV4)
	must(0, ws.WriteMessage(websocket.BinaryMessage, []byte("\x04hello")))(t)
	must(0, ws.WriteMessage(websocket.BinaryMessage, []byte("\x00world")))(t)
	must(0, ws.WriteMessage(websocket.BinaryMessage, []byte("\x05ignored")))(t)
	var got [6]string
	for {
		_, message, err := ws.ReadMessage()
		if err != nil {
			break
		}
		got[message[0]] += string(message[1:])
	}
	head := func(port uint16) string { return string(binary.LittleEndian.AppendUint16(nil, port)) }
	want := [6]string{head(80) + "80:world", head(80), head(9), head(9) + "forwarding port 9: connection refused", head(81) + "81:hello", head(81)}
	if got != want {
		t.Errorf("%q\nwant %q", got, want)
	}
	if _, _, err := (&websocket.Dialer{Subprotocols: []string{protocolV4}}).Dial("ws"+strings.TrimPrefix(forwardURL(t, s), "http"), nil); err == nil {
		t.Error("channels without a port are served")
	}
}

// What stops tells the clients of open connections.
func TestPortForwardStop(t *testing.T) {
	s, stop := serveUntil(t, testConfig(), fakeRuntime{forward: func(ctx context.Context, _ string, _ uint16, conn io.ReadWriteCloser) error {
		defer conn.Close()
		_, _ = conn.Write([]byte("x"))
		<-ctx.Done()
		return context.Cause(ctx)
	}})
	c := dialSPDY(t, forwardURL(t, s), protocolForward)
	data, fault := c.forward(t, 1, 80)
	must(io.ReadFull(data, make([]byte, 1)))(t)
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	if text := must(io.ReadAll(fault))(t); string(text) != "forwarding port 80: "+errStopping.Error() {
		t.Errorf("error %q", text)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}
