package streaming

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/gorilla/websocket"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

// handler answers requests while a server serves.
type handler struct {
	server  *Server
	runtime Runtime
	ctx     context.Context // of all sessions
}

// ServeHTTP looks for the token first: whoever has none learns nothing, nor
// does a page in a browser on the node that has rebound its own name to this
// address. Host and Origin are not looked at, since the kubelet passes those of
// its own client on. There are no redirects: clients have been sent with them
// to where they should not go (CVE-2020-8559).
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodPost {
		w.Header().Set("Allow", "GET, POST")
		http.Error(w, "a streaming session begins with GET or POST", http.StatusMethodNotAllowed)
		return
	}
	if !h.server.begin() {
		http.Error(w, "too many streaming sessions at a time", http.StatusServiceUnavailable)
		return
	}
	defer h.server.finish()
	verb, token, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	request, ok := h.server.tokens.redeem(verb, token)
	if !ok {
		http.NotFound(w, r)
		return
	}
	switch req := request.(type) {
	case *runtimeapi.ExecRequest:
		h.command(w, r, wanted(req), func(ctx context.Context, s Streams) (int, error) {
			return h.runtime.ExecSession(ctx, req, s)
		})
	case *runtimeapi.AttachRequest:
		h.command(w, r, wanted(req), func(ctx context.Context, s Streams) (int, error) {
			return 0, h.runtime.AttachSession(ctx, req, s)
		})
	case *runtimeapi.PortForwardRequest:
		h.portForward(w, r, req)
	}
}

// transport carries the streams of a session.
type transport interface {
	// serve reads what the client sends until it goes or does what it must not.
	serve() error
	// goodbye ends what still waits in the streams, and tells the client that the session is over.
	goodbye()
}

// linger is how long a client may take to leave when it has got all. To close a
// connection on which it goes on to send, if only its pings, resets it, and with
// that goes what it has not taken yet: the end of the output, and the exit code.
const linger = time.Second

// hold runs work while t reads the client's connection. The context of work
// ends with the connection, with the server, and when nothing has gone over the
// connection for the idle timeout. When hold returns, the connection is closed
// and nobody reads it.
func (h *handler) hold(conn *trackedConn, t transport, work func(context.Context) error) {
	defer conn.Close()
	ctx, cancel := context.WithCancelCause(h.ctx)
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { // closing twice does no harm
		time.AfterFunc(farewell, func() { _ = conn.Close() })
	})()
	idle := h.server.cfg.IdleTimeout
	var check *time.Timer
	check = time.AfterFunc(math.MaxInt64, func() { // begins below, when check is set
		if left := idle - conn.idle(); left > 0 {
			check.Reset(left)
		} else {
			cancel(errIdle)
		}
	})
	check.Reset(idle)
	defer check.Stop()
	read := make(chan struct{})
	go func() { // ends when the connection is closed, by the deferred Close at the latest
		defer close(read)
		err := t.serve()
		cancel(err)
		_ = conn.Close() // whatever writes to it returns
	}()
	err := work(ctx)
	klog.FromContext(h.ctx).V(4).Info("Streaming session ended", "err", err)
	if err != nil { // which the client has been told, or has had the time for
		cancel(errEnded)
	}
	t.goodbye()
	for left := false; !left; {
		select {
		case <-read:
			left = true
		case <-time.After(linger):
			left = unsent(conn) == 0
		}
	}
	_ = conn.Close()
	<-read
}

// guarded calls into the runtime; a panic there is an error of this session.
func guarded(ctx context.Context, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			klog.FromContext(ctx).Error(nil, "Panic in a streaming session", "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v; the stack is in gantry's log", p)
		}
	}()
	return f()
}

// upgradeSPDY answers with the first of the client's versions of the protocol
// that is known, and takes the connection over. Without ok the client has been
// answered.
func upgradeSPDY(w http.ResponseWriter, r *http.Request, known []string) (conn *trackedConn, protocol string, ok bool) {
	asked := slices.ContainsFunc(list(r.Header.Values("Connection")), func(s string) bool { return strings.EqualFold(s, "Upgrade") })
	if !asked || !strings.EqualFold(r.Header.Get("Upgrade"), "SPDY/3.1") {
		http.Error(w, "this is no upgrade to SPDY/3.1 or WebSocket", http.StatusBadRequest)
		return nil, "", false
	}
	const versions = "X-Stream-Protocol-Version"
	offered := list(r.Header.Values(versions))
	if len(offered) > 0 {
		i := slices.IndexFunc(offered, func(p string) bool { return slices.Contains(known, p) })
		if i < 0 {
			w.Header()["X-Accepted-Stream-Protocol-Versions"] = known
			http.Error(w, fmt.Sprintf("the client speaks %.256q, this server %q", offered, known), http.StatusForbidden)
			return nil, "", false
		}
		protocol = offered[i]
	}
	taken := hijacker{ResponseWriter: w}
	if _, _, err := taken.Hijack(); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return nil, "", false
	}
	answer := "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
	if protocol != "" {
		answer += versions + ": " + protocol + "\r\n"
	}
	if _, err := taken.conn.Write([]byte(answer + "\r\n")); err != nil {
		_ = taken.conn.Close()
		return nil, "", false
	}
	return taken.conn, protocol, true
}

// list is the elements of headers that hold lists.
func list(values []string) (out []string) {
	for _, value := range values {
		for element := range strings.SplitSeq(value, ",") {
			if element = strings.TrimSpace(element); element != "" {
				out = append(out, element)
			}
		}
	}
	return out
}

// upgradeWebSocket is upgradeSPDY for WebSockets, where the server's preference
// goes first. A client that offers nothing gets the protocol "".
func upgradeWebSocket(w http.ResponseWriter, r *http.Request, known []string) (*websocket.Conn, *trackedConn, bool) {
	offered := websocket.Subprotocols(r)
	if len(offered) > 0 && !slices.ContainsFunc(known, func(p string) bool { return slices.Contains(offered, p) }) {
		http.Error(w, fmt.Sprintf("the client speaks %.256q, this server %q", offered, known), http.StatusForbidden)
		return nil, nil, false
	}
	taken := hijacker{ResponseWriter: w}
	upgrader := websocket.Upgrader{
		Subprotocols: known, ReadBufferSize: chunkSize, WriteBufferSize: 4 << 10,
		CheckOrigin: func(*http.Request) bool { return true }, // see ServeHTTP
	}
	ws, err := upgrader.Upgrade(&taken, r, nil)
	if err != nil { // and the client has been answered
		if taken.conn != nil {
			_ = taken.conn.Close()
		}
		return nil, nil, false
	}
	return ws, taken.conn, true
}

// reasonOf is why a session of this context ends, if not by itself.
func reasonOf(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}
