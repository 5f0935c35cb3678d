package kubelet

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/gorilla/websocket"
	"github.com/moby/spdystream"
)

// What kubectl and an API server speak to the kubelet: SPDY, and WebSockets.

const streamLimit = time.Minute

// session is a client's side of an exec or attach.
type session struct {
	stdin                  io.WriteCloser
	stdout, stderr, status *received
	resize                 io.Writer
}

// received is what has come of a stream. All are read as it comes: one that waits holds up the others.
type received struct {
	mu   sync.Mutex
	data []byte
	end  error // io.EOF when all has come
	more chan struct{}
}

func newReceived() *received { return &received{more: make(chan struct{})} }

// collect reads a stream to its end, which is at the latest that of its connection.
func collect(r io.Reader) *received {
	all := newReceived()
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := r.Read(buf)
			all.add(buf[:n], err)
			if err != nil {
				return
			}
		}
	}()
	return all
}

func (r *received) add(data []byte, end error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.data = append(r.data, data...)
	r.end = end
	close(r.more)
	r.more = make(chan struct{})
}

// until waits until it is enough, or the stream's end, and returns what has come.
func (r *received) until(t testing.TB, enough func(string) bool) string {
	t.Helper()
	for late := time.After(streamLimit); ; {
		r.mu.Lock()
		data, end, more := string(r.data), r.end, r.more
		r.mu.Unlock()
		switch {
		case end != nil && !errors.Is(end, io.EOF):
			t.Fatalf("after %q: %v", data, end)
		case end != nil || enough(data):
			return data
		}
		select {
		case <-more:
		case <-late:
			t.Fatalf("after %q nothing comes", data)
		}
	}
}

func (r *received) all(t testing.TB) string {
	t.Helper()
	return r.until(t, func(string) bool { return false })
}

// dialers open a session of a path of the kubelet's API with the streams that its query asks for.
var dialers = map[string]func(testing.TB, string) session{"SPDY": dialSPDY, "WebSocket": dialWebSocket}

func spdyConnection(t testing.TB, conn net.Conn) *spdystream.Connection {
	t.Helper()
	c, err := spdystream.NewConnection(conn, false)
	if err != nil {
		t.Fatal(err)
	}
	go c.Serve(spdystream.NoOpStreamHandler) // ends with the connection
	t.Cleanup(func() { _ = conn.Close() })
	return c
}

// upgrade makes a SPDY connection of a request to the kubelet.
func upgrade(t testing.TB, path, protocol string) *spdystream.Connection {
	t.Helper()
	conn, err := tls.Dial("tcp", strings.TrimPrefix(kubeletAPI, "https://"), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(streamLimit))
	req, err := http.NewRequest(http.MethodPost, kubeletAPI+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"SPDY/3.1"}, "X-Stream-Protocol-Version": {protocol}}
	if err := req.Write(conn); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(iotest.OneByteReader(conn)), req) // what follows the head is SPDY's
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		body, _ := io.ReadAll(resp.Body)
		t.Fatalf("%s: %s: %s", path, resp.Status, body)
	}
	return spdyConnection(t, conn)
}

func openStream(t testing.TB, c *spdystream.Connection, header http.Header) *spdystream.Stream {
	t.Helper()
	s, err := c.CreateStream(header, nil, false)
	if err == nil {
		err = s.WaitTimeout(streamLimit)
	}
	if err != nil {
		t.Fatalf("opening the stream %v: %v", header, err)
	}
	return s
}

func dialSPDY(t testing.TB, path string) session {
	t.Helper()
	c := upgrade(t, path, "v4.channel.k8s.io")
	open := func(name string) *spdystream.Stream { return openStream(t, c, http.Header{"Streamtype": {name}}) }
	s := session{status: collect(open("error"))}
	if strings.Contains(path, "input=1") {
		s.stdin = open("stdin")
	}
	s.stdout = collect(open("stdout"))
	if strings.Contains(path, "error=1") {
		s.stderr = collect(open("stderr"))
	}
	if strings.Contains(path, "tty=1") {
		s.resize = open("resize")
	}
	return s
}

// channel is one that a WebSocket multiplexes.
type channel struct {
	ws     *websocket.Conn
	number byte
}

func (c channel) Write(p []byte) (int, error) {
	return len(p), c.ws.WriteMessage(websocket.BinaryMessage, append([]byte{c.number}, p...))
}

// Close half-closes it, which v5 can.
func (c channel) Close() error {
	return c.ws.WriteMessage(websocket.BinaryMessage, []byte{255, c.number})
}

func openWebSocket(t testing.TB, path, protocol string) *websocket.Conn {
	t.Helper()
	d := websocket.Dialer{Subprotocols: []string{protocol}, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, HandshakeTimeout: streamLimit}
	ws, resp, err := d.Dial("wss"+strings.TrimPrefix(kubeletAPI, "https")+path, nil)
	if err != nil || ws.Subprotocol() != protocol {
		t.Fatalf("%s: %v (%v)", path, err, resp)
	}
	t.Cleanup(func() { _ = ws.Close() })
	_ = ws.SetReadDeadline(time.Now().Add(streamLimit))
	return ws
}

func dialWebSocket(t testing.TB, path string) session {
	t.Helper()
	ws := openWebSocket(t, path, "v5.channel.k8s.io")
	streams := [4]*received{1: newReceived(), newReceived(), newReceived()}
	go func() { // ends with the connection
		for {
			_, message, err := ws.ReadMessage()
			if websocket.IsCloseError(err, websocket.CloseNormalClosure) {
				err = io.EOF
			}
			switch {
			case err != nil:
				for _, s := range streams[1:] {
					s.add(nil, err)
				}
				return
			case len(message) > 0 && message[0] > 0 && int(message[0]) < len(streams):
				streams[message[0]].add(message[1:], nil)
			}
		}
	}()
	return session{stdin: channel{ws, 0}, stdout: streams[1], stderr: streams[2], status: streams[3], resize: channel{ws, 4}}
}

// exitCode waits for the session's end and reads its status as kubectl does.
func (s session) exitCode(t testing.TB) string {
	t.Helper()
	body := s.status.all(t)
	var status struct {
		Status, Reason, Message string
		Details                 struct {
			Causes []struct{ Reason, Message string }
		}
	}
	if err := json.Unmarshal([]byte(body), &status); err != nil {
		t.Fatalf("status %q: %v", body, err)
	}
	if status.Status == "Success" {
		return "0"
	}
	for _, cause := range status.Details.Causes {
		if cause.Reason == "ExitCode" {
			return cause.Message
		}
	}
	return status.Message
}

// tunnel is the connection that a WebSocket carries: SPDY's bytes in binary messages.
type tunnel struct {
	*websocket.Conn
	rest []byte
}

func (c *tunnel) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		var err error
		if _, c.rest, err = c.ReadMessage(); err != nil {
			return 0, err
		}
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

func (c *tunnel) Write(p []byte) (int, error) {
	return len(p), c.WriteMessage(websocket.BinaryMessage, p)
}

func (c *tunnel) SetDeadline(d time.Time) error { return c.SetReadDeadline(d) }

// forwarders open a connection to the ports of a pod.
var forwarders = map[string]func(testing.TB, string) *spdystream.Connection{
	"SPDY": func(t testing.TB, path string) *spdystream.Connection { return upgrade(t, path, "portforward.k8s.io") },
	"WebSocket": func(t testing.TB, path string) *spdystream.Connection {
		return spdyConnection(t, &tunnel{Conn: openWebSocket(t, path, "SPDY/3.1+portforward.k8s.io")})
	},
}

// query is that of a command's streams.
func query(streams string, argv ...string) string {
	return "?" + streams + "&" + url.Values{"command": argv}.Encode()
}
