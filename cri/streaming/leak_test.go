package streaming

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// holding is what the process has of what clients could make it keep.
type holding struct{ goroutines, descriptors int }

// held counts all goroutines but those of the clients' library, which leaves some behind.
func held(t testing.TB) holding {
	t.Helper()
	stacks := make([]byte, 4<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	n := 0
	for stack := range strings.SplitSeq(string(stacks), "\n\n") {
		if !strings.Contains(stack, "moby/spdystream.(") {
			n++
		}
	}
	return holding{n, len(must(os.ReadDir("/proc/self/fd"))(t))}
}

// settles waits until no more is held than before, by the server nothing.
func settles(t testing.TB, s *Server, before holding) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		now, sessions, tokens := held(t), s.count(), s.tokens.count()
		if now.goroutines <= before.goroutines && now.descriptors <= before.descriptors && sessions == 0 && tokens == 0 {
			return
		}
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("before %+v, now %+v, %d sessions, %d tokens\n%.20000s", before, now, sessions, tokens, stacks[:runtime.Stack(stacks, true)])
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (s *Server) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sessions
}

func (t *tokens) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.pending)
}

// stubborn ends when its context does, and until then reads nothing, writes
// without end, or does what the container's name says.
var stubborn = fakeRuntime{
	exec: func(ctx context.Context, req *runtimeapi.ExecRequest, s Streams) (int, error) {
		switch req.GetContainerId() {
		case "writes":
			for {
				if _, err := s.Stdout.Write(make([]byte, 64<<10)); err != nil {
					return 0, err
				}
			}
		case "reads":
			_, err := io.Copy(io.Discard, s.Stdin)
			return 0, err
		}
		<-ctx.Done()
		return 0, ctx.Err()
	},
	forward: func(ctx context.Context, _ string, _ uint16, conn io.ReadWriteCloser) error {
		defer conn.Close()
		<-ctx.Done()
		return ctx.Err()
	},
}

// steps are how far a client goes before it vanishes; each returns with its
// connection open, for the test to close.
var steps = map[string]func(t testing.TB, s *Server) io.Closer{
	"connected": func(t testing.TB, s *Server) io.Closer {
		return dialRaw(t, s.base)
	},
	"half a request": func(t testing.TB, s *Server) io.Closer {
		conn := dialRaw(t, s.base)
		fmt.Fprint(conn, "GET /exec/")
		return conn
	},
	"upgraded": func(t testing.TB, s *Server) io.Closer {
		return dialSPDY(t, execURL(t, s, named("waits")), protocolV4).conn
	},
	"some streams": func(t testing.TB, s *Server) io.Closer {
		c := dialSPDY(t, execURL(t, s, named("waits")), protocolV4)
		c.stream(t, "streamType", "error")
		c.stream(t, "streamType", "stdin")
		return c.conn
	},
	"all streams": func(t testing.TB, s *Server) io.Closer { return allStreams(t, s, "waits").conn },
	"stdin not closed": func(t testing.TB, s *Server) io.Closer {
		c := allStreams(t, s, "reads")
		must(c.FindStream(3).Write([]byte("x")))(t)
		return c.conn
	},
	"stdin never read": func(t testing.TB, s *Server) io.Closer {
		ws := dialWS(t, execURL(t, s, named("waits")), protocolV5)
		go func() { // ends with the connection
			for ws.WriteMessage(websocket.BinaryMessage, make([]byte, 64<<10)) == nil {
			}
		}()
		return ws
	},
	"stdout never read": func(t testing.TB, s *Server) io.Closer { return allStreams(t, s, "writes").conn },
	"late streams": func(t testing.TB, s *Server) io.Closer {
		c := allStreams(t, s, "waits")
		for range 10 {
			_, _ = c.CreateStream(http.Header{"Streamtype": {"stdin"}}, nil, false)
		}
		return c.conn
	},
	"streams and resets": func(t testing.TB, s *Server) io.Closer {
		c := dialSPDY(t, execURL(t, s, named("waits")), protocolV4)
		for _, kind := range []string{"error", "stdin", "stdout"} {
			if st, err := c.CreateStream(http.Header{"Streamtype": {kind}}, nil, false); err == nil {
				_ = st.Cancel()
			}
		}
		return c.conn
	},
	"WebSocket": func(t testing.TB, s *Server) io.Closer {
		return dialWS(t, execURL(t, s, named("waits")), protocolV5)
	},
	"WebSocket never read": func(t testing.TB, s *Server) io.Closer {
		return dialWS(t, execURL(t, s, named("writes")), protocolV5)
	},
	"WebSocket channels": func(t testing.TB, s *Server) io.Closer {
		return dialWS(t, forwardURL(t, s, 80), protocolV4)
	},
	"half a forward": func(t testing.TB, s *Server) io.Closer {
		c := dialSPDY(t, forwardURL(t, s), protocolForward)
		c.stream(t, "port", "80", "requestID", "1", "streamType", "data")
		return c.conn
	},
	"forward": func(t testing.TB, s *Server) io.Closer {
		c := dialSPDY(t, forwardURL(t, s), protocolForward)
		c.forward(t, 1, 80)
		return c.conn
	},
	"tunnelled forward": func(t testing.TB, s *Server) io.Closer {
		c := dialTunnel(t, forwardURL(t, s))
		c.forward(t, 1, 80)
		return c.conn
	},
}

func named(container string) *runtimeapi.ExecRequest {
	return &runtimeapi.ExecRequest{ContainerId: container, Cmd: []string{"x"}, Stdin: true, Stdout: true, Stderr: true}
}

func allStreams(t testing.TB, s *Server, container string) *spdyClient {
	t.Helper()
	c := dialSPDY(t, execURL(t, s, named(container)), protocolV4)
	for _, kind := range []string{"error", "stdin", "stdout", "stderr"} { // stdin is stream 3
		c.stream(t, "streamType", kind)
	}
	return c
}

func dialRaw(t testing.TB, base string) io.ReadWriteCloser {
	t.Helper()
	return must(net.Dial("tcp", strings.TrimPrefix(base, "http://")))(t)
}

// Whatever a client has begun, nothing of it is left once it has vanished.
func TestNothingIsLeft(t *testing.T) {
	s := serve(t, testConfig(), stubborn)
	cycles := 1 + 1000/len(steps)
	if testing.Short() {
		cycles = 3
	}
	get(t, http.MethodGet, s.base, nil) // it serves now
	for name, step := range steps {
		t.Run(name, func(t *testing.T) {
			before := held(t)
			for range cycles {
				_ = step(quick{t}, s).Close()
			}
			settles(t, s, before)
		})
	}
}

// quick is a test whose clean-ups are not kept until its end.
type quick struct{ testing.TB }

func (quick) Cleanup(func()) {}
