package streaming

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	protocolForward = "portforward.k8s.io"
	protocolTunnel  = "SPDY/3.1+" + protocolForward

	maxForwards = 1024 // connections to ports at a time, of one session
	maxPorts    = 100  // of a request for WebSocket channels
)

// portForward serves a client that forwards ports of a pod. Over SPDY, in a
// WebSocket or not, each connection is a pair of streams; over WebSocket
// channels the request has the ports, and each is one connection.
func (h *handler) portForward(w http.ResponseWriter, r *http.Request, req *runtimeapi.PortForwardRequest) {
	f := &forwards{
		ports: req.GetPort(), timeout: h.server.cfg.CreationTimeout, pairs: map[string]*pair{}, begun: make(chan struct{}),
		dial: func(ctx context.Context, port uint16, conn io.ReadWriteCloser) error {
			return guarded(ctx, func() error { return h.runtime.ForwardPort(ctx, req.GetPodSandboxId(), port, conn) })
		},
	}
	if !websocket.IsWebSocketUpgrade(r) {
		if conn, _, ok := upgradeSPDY(w, r, []string{protocolForward}); ok {
			h.hold(conn, newSPDY(conn, f.opened), f.run)
		}
		return
	}
	known := []string{protocolTunnel}
	if n := len(f.ports); n > 0 && n <= maxPorts {
		known = append(known, protocolV4, protocolV4Base64)
	}
	ws, conn, ok := upgradeWebSocket(w, r, known)
	if !ok {
		return
	}
	if ws.Subprotocol() == protocolTunnel {
		h.hold(conn, newTunnelled(conn, ws, f.opened), f.run)
		return
	}
	c, all := f.channels(ws)
	h.hold(conn, c, func(ctx context.Context) error { return f.runChannels(ctx, all) })
}

// tunnelled is SPDY in a WebSocket, which has pings of its own.
type tunnelled struct {
	*spdyConn
	pongs *ponger
}

func newTunnelled(conn net.Conn, ws *websocket.Conn, opened func(*spdyStream) (func(), error)) *tunnelled {
	t := &tunnelled{newSPDY(&tunnel{Conn: conn, ws: ws}, opened), answerPings(ws)}
	t.gone = func() error { return stillThere(conn, &t.writing, nothingWebSocket) }
	return t
}

func (t *tunnelled) serve() error {
	err := t.spdyConn.serve()
	_ = t.conn.Close() // or a pong might never be written
	t.pongs.stop()
	return err
}

// forwards are the connections of one session.
type forwards struct {
	ports   []int32 // those of the request; any when it has none
	timeout time.Duration
	dial    func(ctx context.Context, port uint16, conn io.ReadWriteCloser) error
	begun   chan struct{} // closed when ctx is set

	mu      sync.Mutex       // guards what follows
	ctx     context.Context  // of the session; nil when it has ended
	pairs   map[string]*pair // of which one stream is missing
	n       int              // pairs and connections
	running sync.WaitGroup   // added to only while ctx is not nil
}

// pair is the two streams of a connection.
type pair struct {
	port        uint16
	data, fault *spdyStream
	expiry      *time.Timer
}

// run lets connections be made until the session ends, and waits for them.
func (f *forwards) run(ctx context.Context) error {
	f.ctx = ctx
	close(f.begun)
	<-ctx.Done()
	f.mu.Lock()
	f.ctx = nil
	for _, p := range f.pairs {
		p.expiry.Stop()
	}
	f.mu.Unlock()
	f.running.Wait()
	return context.Cause(ctx)
}

// opened puts a stream to the other one of its connection.
func (f *forwards) opened(s *spdyStream) (start func(), err error) {
	<-f.begun
	port, err := f.port(s.headers.Get("port"))
	if err != nil {
		return nil, err
	}
	kind := s.headers.Get("streamType")
	if kind != "data" && kind != "error" {
		return nil, fmt.Errorf("stream %.32q is not wanted", kind)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	id := requestID(s, kind)
	p, err := f.pair(id, port)
	if err != nil {
		return nil, err
	}
	mine := &p.data
	if kind == "error" {
		mine = &p.fault
	}
	if *mine != nil || p.port != port {
		return nil, fmt.Errorf("request %.32q has its %s stream", id, kind)
	}
	*mine = s
	if p.data == nil || p.fault == nil {
		return func() {}, nil
	}
	p.expiry.Stop()
	delete(f.pairs, id)
	return func() { f.start(p) }, nil
}

// pair is the one with an id, made if there is none. f.mu is held.
func (f *forwards) pair(id string, port uint16) (*pair, error) {
	if p := f.pairs[id]; p != nil {
		return p, nil
	}
	if f.ctx == nil {
		return nil, errEnded
	}
	if f.n >= maxForwards {
		return nil, fmt.Errorf("%d connections at a time are the most", maxForwards)
	}
	f.n++
	p := &pair{port: port}
	p.expiry = time.AfterFunc(f.timeout, func() { f.expire(id, p) })
	f.pairs[id] = p
	return p, nil
}

// requestID is what the two streams of a connection have in common. Clients
// before Kubernetes 1.2 gave none, and opened the error stream just before.
func requestID(s *spdyStream, kind string) string {
	if id := s.headers.Get("requestID"); id != "" {
		return id
	}
	first := s.id
	if kind == "data" {
		first -= 2
	}
	return "stream " + strconv.FormatUint(uint64(first), 10)
}

// expire gives up a connection of which the other stream has not come.
func (f *forwards) expire(id string, p *pair) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ctx == nil || f.pairs[id] != p {
		return
	}
	delete(f.pairs, id)
	f.running.Go(func() {
		defer f.release()
		for _, s := range []*spdyStream{p.data, p.fault} {
			if s != nil {
				s.Reset()
			}
		}
	})
}

func (f *forwards) release() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n--
}

// start begins to forward a connection.
func (f *forwards) start(p *pair) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if ctx := f.ctx; ctx != nil {
		f.running.Go(func() {
			defer f.release()
			f.forward(ctx, p)
		})
	}
}

func (f *forwards) forward(ctx context.Context, p *pair) {
	err := f.dial(ctx, p.port, p.data)
	if text := complaint(ctx, p.port, err); text != "" {
		_, _ = p.fault.Write([]byte(text)) // whoever has gone does not care
		_ = p.fault.Close()
		p.data.Reset()
		return
	}
	_ = p.data.Close()
	_ = p.fault.Close()
}

// complaint is what the client is told of a connection that ended with err. Of
// what it did itself, nothing.
func complaint(ctx context.Context, port uint16, err error) string {
	if err = reasonOf(ctx, err); err == nil || errors.Is(err, errReset) || errors.Is(err, errGone) || errors.Is(err, errEnded) {
		return ""
	}
	return fmt.Sprintf("forwarding port %d: %v", port, err)
}

// port reads the number of a port that may be forwarded.
func (f *forwards) port(text string) (uint16, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%.32q is no port", text)
	}
	if len(f.ports) > 0 && !slices.Contains(f.ports, int32(n)) {
		return 0, fmt.Errorf("port %d is not among those of the request", n)
	}
	return uint16(n), nil
}

// channels are the data and error channels of the request's ports, in pairs.
func (f *forwards) channels(ws *websocket.Conn) (*channelConn, []*channel) {
	c := newChannelConn(ws, 2*len(f.ports))
	all := make([]*channel, 0, 2*len(f.ports))
	for i := range f.ports {
		all = append(all, c.channel(byte(2*i), newInbox()), c.channel(byte(2*i+1), nil))
	}
	return c, all
}

// runChannels forwards the request's ports until all connections have ended.
func (f *forwards) runChannels(ctx context.Context, all []*channel) error {
	var forwards sync.WaitGroup
	for i, n := range f.ports {
		data, fault, port := all[2*i], all[2*i+1], uint16(n)
		// Both channels begin with their port.
		for _, ch := range []*channel{data, fault} {
			if err := ch.message(binary.LittleEndian.AppendUint16(nil, port)); err != nil {
				return err
			}
		}
		forwards.Go(func() {
			if text := complaint(ctx, port, f.dial(ctx, port, data)); text != "" {
				_, _ = fault.Write([]byte(text))
			}
			_ = data.Close()
		})
	}
	forwards.Wait()
	return nil
}
