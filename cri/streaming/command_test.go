package streaming

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var all = &runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"cat"}, Stdin: true, Stdout: true, Stderr: true}

// Every version of the protocol carries input to its end, both outputs and what became of the command.
func TestExecSPDY(t *testing.T) {
	s := serve(t, testConfig(), echo(3))
	input := strings.Repeat("0123456789abcde\n", 1<<17) // 2 MiB, more than an inbox
	for _, protocol := range commandSPDY {
		t.Run(protocol, func(t *testing.T) {
			got := runSPDY(t, dialSPDY(t, execURL(t, s, all), protocol), input)
			if got.stdout != input || got.stderr != "done" {
				t.Errorf("stdout of %d bytes, stderr %q", len(got.stdout), got.stderr)
			}
			if protocol == protocolV4 {
				if code := exitCode(t, got.fault); code != 3 {
					t.Errorf("exit code %d", code)
				}
			} else if string(got.fault) != "command terminated with exit code 3" {
				t.Errorf("error stream %q", got.fault)
			}
		})
	}
}

// A client that names no version gets the first, and a success is silent there.
func TestExecOfOldClient(t *testing.T) {
	s := serve(t, testConfig(), echo(0))
	if got := runSPDY(t, dialSPDY(t, execURL(t, s, all)), "x"); got.stdout != "x" || len(got.fault) != 0 {
		t.Errorf("stdout %q, error stream %q", got.stdout, got.fault)
	}
}

// Version 5 is preferred when it is offered, and has the half-close.
func TestExecWebSocket(t *testing.T) {
	s := serve(t, testConfig(), echo(3))
	input := strings.Repeat("0123456789abcde\n", 1<<17)
	ws := dialWS(t, execURL(t, s, all), protocolV4, protocolV5)
	if ws.Subprotocol() != protocolV5 {
		t.Fatalf("protocol %q", ws.Subprotocol())
	}
	got := runWS(t, ws, input) // as a single message
	if got.stdout != input || got.stderr != "done" {
		t.Errorf("stdout of %d bytes, stderr %q", len(got.stdout), got.stderr)
	}
	if code := exitCode(t, got.fault); code != 3 {
		t.Errorf("exit code %d", code)
	}
}

// greet reads a line and answers it, since before version 5 a WebSocket has no half-close.
func greet(_ context.Context, _ *runtimeapi.ExecRequest, s Streams) (int, error) {
	line := make([]byte, 5)
	if _, err := io.ReadFull(s.Stdin, line); err != nil {
		return 0, err
	}
	fmt.Fprintf(s.Stdout, "got %s", line)
	return 7, nil
}

func TestExecOldWebSocket(t *testing.T) {
	s := serve(t, testConfig(), fakeRuntime{exec: greet})
	for _, protocol := range []string{"", protocolV1, protocolV4} {
		t.Run("binary "+protocol, func(t *testing.T) {
			var offer []string
			if protocol != "" {
				offer = []string{protocol}
			}
			ws := dialWS(t, execURL(t, s, all), offer...)
			got := runWS(t, ws, "hello")
			if got.stdout != "got hello" {
				t.Errorf("stdout %q", got.stdout)
			}
			if protocol == protocolV4 {
				if code := exitCode(t, got.fault); code != 7 {
					t.Errorf("exit code %d", code)
				}
			} else if string(got.fault) != "command terminated with exit code 7" {
				t.Errorf("error channel %q", got.fault)
			}
		})
	}
	for _, protocol := range []string{protocolV1Base64, protocolV4Base64} {
		t.Run(protocol, func(t *testing.T) {
			ws := dialWS(t, execURL(t, s, all), protocol)
			must(0, ws.WriteMessage(websocket.TextMessage, []byte("0"+base64.StdEncoding.EncodeToString([]byte("hello")))))(t)
			var texts [4]string
			for {
				kind, message, err := ws.ReadMessage()
				if err != nil {
					break
				}
				if kind != websocket.TextMessage {
					t.Fatalf("message of kind %d", kind)
				}
				texts[message[0]-'0'] += string(must(base64.StdEncoding.DecodeString(string(message[1:])))(t))
			}
			if texts[1] != "got hello" || !strings.Contains(texts[3], "7") {
				t.Errorf("channels %q", texts)
			}
		})
	}
}

// An error of the runtime is a Status of the reason InternalError, with its text.
func TestExecFails(t *testing.T) {
	for name, exec := range map[string]func(context.Context, *runtimeapi.ExecRequest, Streams) (int, error){
		"error": func(context.Context, *runtimeapi.ExecRequest, Streams) (int, error) {
			return 0, errors.New("no such program")
		},
		"panic": func(context.Context, *runtimeapi.ExecRequest, Streams) (int, error) { panic("no such program") },
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, testConfig(), fakeRuntime{exec: exec})
			for transport, fault := range map[string][]byte{
				"SPDY":      runSPDY(t, dialSPDY(t, execURL(t, s, all), protocolV4), "").fault,
				"WebSocket": runWS(t, dialWS(t, execURL(t, s, all), protocolV5), "").fault,
			} {
				var st status
				if err := json.Unmarshal(fault, &st); err != nil || st.Status != "Failure" || st.Reason != "InternalError" || !strings.Contains(st.Message, "no such program") {
					t.Errorf("%s: %s (%v)", transport, fault, err)
				}
			}
		})
	}
}

// Attach passes its own request on and has the exit code 0; streams that are not asked for are nil.
func TestAttach(t *testing.T) {
	s := serve(t, testConfig(), fakeRuntime{attach: func(_ context.Context, req *runtimeapi.AttachRequest, s Streams) error {
		if s.Stdin != nil || s.Stderr != nil || s.Resize != nil {
			return fmt.Errorf("streams %+v", s)
		}
		_, err := fmt.Fprint(s.Stdout, "of ", req.GetContainerId())
		return err
	}})
	c := dialSPDY(t, must(s.Attach(&runtimeapi.AttachRequest{ContainerId: "c", Stdout: true}))(t), protocolV4)
	fault, out := c.stream(t, "streamType", "error"), c.stream(t, "streamType", "stdout")
	if got := must(io.ReadAll(out))(t); string(got) != "of c" {
		t.Errorf("stdout %q", got)
	}
	if code := exitCode(t, must(io.ReadAll(fault))(t)); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// Of a million sizes that nobody takes the last is kept, and none without extent.
func TestResizesAreCoalesced(t *testing.T) {
	events := strings.Repeat(`{"Width":1,"Height":1}`, 100_000) +
		`{"Width":65535,"Height":65535}` + "\n" + ` { "Height" : 24 , "Width" : 80 } {"Width":0,"Height":0}{"Width":0,"Height":9}`
	sizes := make(chan TerminalSize, 1)
	if err := readResizes(strings.NewReader(events), sizes); err != nil {
		t.Fatal(err)
	}
	if got := <-sizes; got != (TerminalSize{80, 24}) || len(sizes) != 0 {
		t.Errorf("%v, and %d more", got, len(sizes))
	}
}

// A terminal's sizes reach the runtime, until the session's end.
func TestResize(t *testing.T) {
	exec := func(_ context.Context, _ *runtimeapi.ExecRequest, s Streams) (int, error) {
		for size := range s.Resize {
			fmt.Fprintf(s.Stdout, "%dx%d ", size.Width, size.Height)
			if size.Width == 2 {
				return 0, nil
			}
		}
		return 0, errors.New("Resize was closed before the end")
	}
	s := serve(t, testConfig(), fakeRuntime{exec: exec})
	c := dialSPDY(t, execURL(t, s, &runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"sh"}, Tty: true, Stdout: true}), protocolV4)
	fault, out, resize := c.stream(t, "streamType", "error"), c.stream(t, "streamType", "stdout"), c.stream(t, "streamType", "resize")
	must(resize.Write([]byte(`{"Width":0,"Height":1}{"Width":1,"Height":`)))(t)
	must(resize.Write([]byte("1}\n")))(t)
	must(io.ReadFull(out, make([]byte, len("1x1 "))))(t)
	must(resize.Write([]byte(`{"Width":2,"Height":3}`)))(t)
	if got := must(io.ReadAll(out))(t); string(got) != "2x3 " {
		t.Errorf("sizes %q", got)
	}
	if code := exitCode(t, must(io.ReadAll(fault))(t)); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// What is no size ends the resizes and nothing else.
func TestResizeGarbage(t *testing.T) {
	for _, garbage := range []string{"nonsense}", `{"Width":65536,"Height":1}`, `{"Width":"a"}`, strings.Repeat("{", 2*inboxSize)} {
		s := serve(t, testConfig(), echo(0))
		ws := dialWS(t, execURL(t, s, all), protocolV5)
		must(0, ws.SetWriteDeadline(time.Now().Add(time.Minute)))(t)
		must(0, ws.WriteMessage(websocket.BinaryMessage, append([]byte{4}, garbage...)))(t)
		must(0, ws.WriteMessage(websocket.BinaryMessage, []byte("\x04{\"Width\":1,\"Height\":1}")))(t)
		if got := runWS(t, ws, "x"); got.stdout != "x" || exitCode(t, got.fault) != 0 {
			t.Errorf("after %.20q: %+v", garbage, got)
		}
	}
}

// wait waits for the session's end and says what its input ended with.
func wait(ended chan<- error) fakeRuntime {
	return fakeRuntime{exec: func(ctx context.Context, _ *runtimeapi.ExecRequest, s Streams) (int, error) {
		fmt.Fprint(s.Stdout, "begun")
		<-ctx.Done()
		ended <- context.Cause(ctx)
		return 137, ctx.Err()
	}}
}

// A server that stops says so to every client, and where the container is.
func TestStop(t *testing.T) {
	ended := make(chan error, 2)
	s, stop := serveUntil(t, testConfig(), wait(ended))
	c := dialSPDY(t, execURL(t, s, all), protocolV4)
	fault := c.stream(t, "streamType", "error")
	c.stream(t, "streamType", "stdin")
	out, _ := c.stream(t, "streamType", "stdout"), c.stream(t, "streamType", "stderr")
	must(io.ReadFull(out, make([]byte, 5)))(t)
	ws := dialWS(t, execURL(t, s, all), protocolV5)
	for got := ""; got != "begun"; { // after the empty message
		_, message, err := ws.ReadMessage()
		if err != nil {
			t.Fatal(err)
		}
		got = string(message[1:])
	}
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	for transport, fault := range map[string][]byte{"SPDY": must(io.ReadAll(fault))(t), "WebSocket": readWS(t, ws).fault} {
		var st status
		if err := json.Unmarshal(fault, &st); err != nil || st.Message != "gantry is stopping; the container runs on" {
			t.Errorf("%s: %s", transport, fault)
		}
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// A session in which nothing goes either way ends, and its client is told why.
func TestIdle(t *testing.T) {
	t.Parallel() // as others that wait for the clock
	cfg := testConfig()
	cfg.IdleTimeout = 5 * time.Second // in which a slow machine's client takes its next step
	ended := make(chan error, 1)
	s := serve(t, cfg, wait(ended))
	got := runSPDY(t, dialSPDY(t, execURL(t, s, all), protocolV4), "")
	if !strings.Contains(string(got.fault), errIdle.Error()) {
		t.Errorf("error stream %q", got.fault)
	}
	if err := <-ended; !errors.Is(err, errIdle) {
		t.Error(err)
	}
}

// A client that opens too few streams is let go.
func TestCreationTimeout(t *testing.T) {
	cfg := testConfig()
	cfg.CreationTimeout = 100 * time.Millisecond
	s := serve(t, cfg, fakeRuntime{})
	c := dialSPDY(t, execURL(t, s, all), protocolV4)
	for _, kind := range []string{"error", "stdin"} { // which may come too late
		_, _ = c.CreateStream(http.Header{"Streamtype": {kind}}, nil, false)
	}
	<-c.CloseChan()
}

// A stream that is not wanted, or comes twice or late, is refused, and the session goes on.
func TestUnwantedStreams(t *testing.T) {
	s := serve(t, testConfig(), echo(0))
	c := dialSPDY(t, execURL(t, s, all), protocolV4)
	fault, in := c.stream(t, "streamType", "error"), c.stream(t, "streamType", "stdin")
	refused := func(kind string) {
		t.Helper()
		s, err := c.CreateStream(map[string][]string{"streamType": {kind}}, nil, false)
		if err == nil {
			err = s.WaitTimeout(time.Minute)
		}
		if err == nil {
			t.Errorf("a stream of the type %q is accepted", kind)
		}
	}
	refused("stdin")
	refused("resize")
	refused("")
	out, _ := c.stream(t, "streamType", "stdout"), c.stream(t, "streamType", "stderr")
	refused("stdout")
	must(in.Write([]byte("x")))(t)
	must(0, in.Close())(t)
	if got := must(io.ReadAll(out))(t); string(got) != "x" {
		t.Errorf("stdout %q", got)
	}
	if code := exitCode(t, must(io.ReadAll(fault))(t)); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// A client that goes without a half-close is not one that has sent all: attach must not end the container's input for it.
func TestGoneIsNoEnd(t *testing.T) {
	inputs := make(chan error, 1)
	s := serve(t, testConfig(), fakeRuntime{exec: func(ctx context.Context, _ *runtimeapi.ExecRequest, s Streams) (int, error) {
		_, err := io.Copy(io.Discard, s.Stdin)
		inputs <- err
		return 0, err
	}})
	for name, leave := range map[string]func(c *spdyClient){
		"closed": func(c *spdyClient) { c.conn.Close() },
		"goaway": func(c *spdyClient) { c.Close() },
	} {
		c := dialSPDY(t, execURL(t, s, all), protocolV4)
		c.stream(t, "streamType", "error")
		in := c.stream(t, "streamType", "stdin")
		c.stream(t, "streamType", "stdout")
		c.stream(t, "streamType", "stderr")
		must(in.Write([]byte("half a li")))(t)
		leave(c)
		if err := <-inputs; err == nil {
			t.Errorf("%s: the input has ended", name)
		}
	}
	ws := dialWS(t, execURL(t, s, all), protocolV5)
	must(0, ws.WriteMessage(websocket.BinaryMessage, []byte("\x00half a li")))(t)
	closeMessage(ws)
	if err := <-inputs; err == nil {
		t.Error("WebSocket: the input has ended")
	}
}

// Input that waits long for its reader comes whole, whatever was done meanwhile to see whether the client is there.
func TestSlowInput(t *testing.T) {
	t.Parallel()
	input := strings.Repeat("0123456789abcde\n", 1<<18) // 4 MiB
	s := serve(t, testConfig(), fakeRuntime{exec: func(ctx context.Context, req *runtimeapi.ExecRequest, s Streams) (int, error) {
		time.Sleep(2*gonePoll + gonePoll/2)
		return echo(0).exec(ctx, req, s)
	}})
	var clients sync.WaitGroup
	for name, run := range map[string]func() commandResult{
		"SPDY":      func() commandResult { return runSPDY(t, dialSPDY(t, execURL(t, s, all), protocolV4), input) },
		"WebSocket": func() commandResult { return runWS(t, dialWS(t, execURL(t, s, all), protocolV5), input) },
	} {
		clients.Go(func() {
			if got := run(); got.stdout != input || exitCode(t, got.fault) != 0 {
				t.Errorf("%s: stdout of %d bytes, error stream %q", name, len(got.stdout), got.fault)
			}
		})
	}
	clients.Wait()
}
