package streaming

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/moby/spdystream"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fakeRuntime is the boundary: what the URLs stand for.
type fakeRuntime struct {
	exec    func(context.Context, *runtimeapi.ExecRequest, Streams) (int, error)
	attach  func(context.Context, *runtimeapi.AttachRequest, Streams) error
	forward func(context.Context, string, uint16, io.ReadWriteCloser) error
}

func (f fakeRuntime) ExecSession(ctx context.Context, req *runtimeapi.ExecRequest, s Streams) (int, error) {
	return f.exec(ctx, req, s)
}

func (f fakeRuntime) AttachSession(ctx context.Context, req *runtimeapi.AttachRequest, s Streams) error {
	return f.attach(ctx, req, s)
}

func (f fakeRuntime) ForwardPort(ctx context.Context, pod string, port uint16, conn io.ReadWriteCloser) error {
	return f.forward(ctx, pod, port, conn)
}

// echo is a command that copies its input to its output, says so on stderr, and exits with code.
func echo(code int) fakeRuntime {
	return fakeRuntime{exec: func(_ context.Context, _ *runtimeapi.ExecRequest, s Streams) (int, error) {
		if _, err := io.Copy(s.Stdout, s.Stdin); err != nil {
			return 0, err
		}
		if s.Stderr != nil {
			fmt.Fprint(s.Stderr, "done")
		}
		return code, nil
	}}
}

func testConfig() Config {
	return Config{Address: "127.0.0.1:0", IdleTimeout: time.Hour, CreationTimeout: time.Minute, TokenTimeout: time.Minute}
}

// serve runs a server until the test's end, when it must end within its bound.
func serve(t testing.TB, cfg Config, runtime Runtime) *Server {
	t.Helper()
	s, stop := serveUntil(t, cfg, runtime)
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s
}

// serveUntil runs a server until stop is called, which waits for its end.
func serveUntil(t testing.TB, cfg Config, runtime Runtime) (_ *Server, stop func() error) {
	t.Helper()
	s, err := Listen(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, runtime) }()
	return s, sync.OnceValue(func() error {
		cancel()
		return <-served
	})
}

func must[T any](value T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

func execURL(t testing.TB, s *Server, req *runtimeapi.ExecRequest) string {
	t.Helper()
	return must(s.Exec(req))(t)
}

// upgrade sends the request of a SPDY client and returns its connection, as
// well as the answer, which is whole when it is no upgrade.
func upgrade(t testing.TB, address string, header http.Header) (net.Conn, *http.Response) {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn, request(t, conn, address, header)
}

func request(t testing.TB, conn net.Conn, address string, header http.Header) *http.Response {
	t.Helper()
	req := must(http.NewRequest(http.MethodPost, address, nil))(t)
	req.Header = header.Clone()
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "SPDY/3.1")
	if host := header.Get("Host"); host != "" {
		req.Host = host
	}
	if err := req.Write(conn); err != nil {
		t.Fatal(err)
	}
	return must(readResponse(conn))(t)
}

// readResponse takes a byte at a time, for what follows the head is SPDY's.
func readResponse(conn io.Reader) (*http.Response, error) {
	return http.ReadResponse(bufio.NewReaderSize(onebyte{conn}, 16), nil)
}

type onebyte struct{ io.Reader }

func (o onebyte) Read(p []byte) (int, error) { return o.Reader.Read(p[:1]) }

// spdyClient is a client's SPDY connection.
type spdyClient struct {
	*spdystream.Connection
	conn net.Conn
}

func dialSPDY(t testing.TB, address string, protocols ...string) *spdyClient {
	t.Helper()
	conn, resp := upgrade(t, address, http.Header{"X-Stream-Protocol-Version": protocols})
	if resp.StatusCode != http.StatusSwitchingProtocols {
		body, _ := io.ReadAll(resp.Body)
		t.Fatalf("%s: %s", resp.Status, body)
	}
	if got := resp.Header.Get("X-Stream-Protocol-Version"); len(protocols) > 0 && got != protocols[0] {
		t.Fatalf("protocol %q, want %q", got, protocols[0])
	}
	return newSPDYClient(t, conn)
}

func newSPDYClient(t testing.TB, conn net.Conn) *spdyClient {
	t.Helper()
	c := &spdyClient{must(spdystream.NewConnection(conn, false))(t), conn}
	go c.Serve(spdystream.NoOpStreamHandler)
	t.Cleanup(func() { conn.Close() })
	return c
}

func (c *spdyClient) stream(t testing.TB, header ...string) *spdystream.Stream {
	t.Helper()
	h := http.Header{}
	for i := 0; i < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	s, err := c.CreateStream(h, nil, false)
	if err == nil {
		err = s.WaitTimeout(time.Minute)
	}
	if err != nil {
		t.Fatalf("opening stream %v: %v", header, err)
	}
	return s
}

// command is what a client of exec or attach sees.
type commandResult struct {
	stdout, stderr string
	fault          []byte
}

// runSPDY opens the streams of exec, sends stdin and returns all that comes.
func runSPDY(t testing.TB, c *spdyClient, stdin string) commandResult {
	t.Helper()
	fault := c.stream(t, "streamType", "error")
	in := c.stream(t, "streamType", "stdin")
	out, errs := c.stream(t, "streamType", "stdout"), c.stream(t, "streamType", "stderr")
	go func() {
		_, _ = io.Copy(in, bytes.NewBufferString(stdin))
		_ = in.Close()
	}()
	var r commandResult
	var all sync.WaitGroup
	all.Go(func() { b, _ := io.ReadAll(out); r.stdout = string(b) })
	all.Go(func() { b, _ := io.ReadAll(errs); r.stderr = string(b) })
	all.Go(func() { r.fault, _ = io.ReadAll(fault) })
	all.Wait()
	return r
}

// exitCode reads a Status as clients do.
func exitCode(t testing.TB, fault []byte) int {
	t.Helper()
	var st status
	if err := json.Unmarshal(fault, &st); err != nil {
		t.Fatalf("status %q: %v", fault, err)
	}
	switch {
	case st.Status == "Success":
		return 0
	case st.Reason == "NonZeroExitCode" && st.Details != nil && st.Details.Causes[0].Type == "ExitCode":
		return must(strconv.Atoi(st.Details.Causes[0].Message))(t)
	}
	t.Fatalf("status %s", fault)
	return -1
}

// dialWS opens a WebSocket.
func dialWS(t testing.TB, address string, protocols ...string) *websocket.Conn {
	t.Helper()
	d := websocket.Dialer{Subprotocols: protocols}
	ws, resp, err := d.Dial("ws"+address[len("http"):], http.Header{"Origin": {"https://elsewhere.example"}})
	if err != nil {
		t.Fatalf("%v (%v)", err, resp)
	}
	t.Cleanup(func() { ws.Close() })
	return ws
}

// runWS sends stdin as messages of channel 0, half-closes it if the protocol can, and returns all that comes.
func runWS(t testing.TB, ws *websocket.Conn, stdin string) commandResult {
	t.Helper()
	must(0, ws.WriteMessage(websocket.BinaryMessage, append([]byte{0}, stdin...)))(t)
	if ws.Subprotocol() == protocolV5 {
		must(0, ws.WriteMessage(websocket.BinaryMessage, []byte{255, 0}))(t)
	}
	return readWS(t, ws)
}

func readWS(t testing.TB, ws *websocket.Conn) (r commandResult) {
	t.Helper()
	for {
		_, message, err := ws.ReadMessage()
		if closed := (&websocket.CloseError{}); errors.As(err, &closed) && closed.Code == websocket.CloseNormalClosure {
			return r
		}
		if err != nil {
			t.Fatalf("reading: %v", err)
		}
		switch message[0] {
		case 1:
			r.stdout += string(message[1:])
		case 2:
			r.stderr += string(message[1:])
		case 3:
			r.fault = append(r.fault, message[1:]...)
		}
	}
}
