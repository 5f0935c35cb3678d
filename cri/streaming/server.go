package streaming

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

const (
	maxSessions    = 1000 // at a time
	maxNewcomers   = 256  // connections that have not shown a token yet
	requestTimeout = 10 * time.Second
	maxRequest     = 64 << 10 // bytes of a request's head: kubelets pass on what browsers send

	// farewell is how long a session that was told to end may take to tell its
	// client; then the connection is closed under it.
	farewell = 2 * time.Second
	// stopWait is how long Serve waits for sessions at its end.
	stopWait = 5 * time.Second
)

var (
	errStopping = errors.New("gantry is stopping; the container runs on")
	errIdle     = errors.New("nothing was sent either way for the idle timeout")
)

// TerminalSize is the size of a terminal in cells. It is an alias, so that
// packages that may not import each other share the type.
type TerminalSize = struct{ Width, Height uint16 }

// Streams are the client's ends of a session; nil is one that it does not want.
// Each may be used by one goroutine for reading and any for writing. When the
// session's function has returned, whatever still waits in them returns.
type Streams struct {
	Stdin          io.Reader           // ends with io.EOF at the client's half-close, with another error when the client has gone
	Stdout, Stderr io.Writer           // they fail when the client has gone
	Resize         <-chan TerminalSize // the latest size counts; closed at the session's end
}

// Runtime does what the URLs stand for. A context ends when the client has gone
// or the server stops; the functions return soon after. conn has CloseWrite for
// half-closes.
type Runtime interface {
	ExecSession(ctx context.Context, req *runtimeapi.ExecRequest, s Streams) (exitCode int, err error)
	AttachSession(ctx context.Context, req *runtimeapi.AttachRequest, s Streams) error
	ForwardPort(ctx context.Context, podSandboxID string, port uint16, conn io.ReadWriteCloser) error
}

// Config is the plain values of a server.
type Config struct {
	Address         string        // an IP address and a port, which may be 0
	IdleTimeout     time.Duration // of a session
	CreationTimeout time.Duration // from the upgrade until the client has opened its streams
	TokenTimeout    time.Duration // from the CRI's answer until the client connects
	TLS             TLS           // without, Address must be a loopback one
}

// Server is bound from Listen on, so that it can give URLs, and answers while
// Serve runs.
type Server struct {
	cfg      Config
	listener net.Listener
	base     string // of all URLs
	tokens   tokens

	mu       sync.Mutex // guards what follows
	sessions int
	stopping bool
	running  sync.WaitGroup // the sessions; added to only while not stopping
}

// Listen binds the server's address.
func Listen(cfg Config) (*Server, error) {
	addr, err := netip.ParseAddrPort(cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("streaming address %q: %w", cfg.Address, err)
	}
	certs, err := cfg.TLS.open()
	if err != nil {
		return nil, err
	}
	if certs == nil && !addr.Addr().IsLoopback() {
		return nil, fmt.Errorf("streaming address %s can be reached from elsewhere: give a loopback address, or a certificate and key", cfg.Address)
	}
	// A client whose machine is gone says nothing more; the kernel asks.
	alive := net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3}
	listener, err := (&net.ListenConfig{KeepAliveConfig: alive}).Listen(context.Background(), "tcp", cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("listening for streaming clients: %w", err)
	}
	s := &Server{cfg: cfg, base: "http://", tokens: tokens{ttl: cfg.TokenTimeout, pending: map[string]pending{}}}
	bound := listener.Addr().(*net.TCPAddr).AddrPort()
	if host := addr.Addr(); host.IsUnspecified() { // no address that a client could connect to
		bound = netip.AddrPortFrom(loopbackOf(host), bound.Port())
	} else {
		bound = netip.AddrPortFrom(host, bound.Port())
	}
	s.listener = listener
	if certs != nil {
		s.base, s.listener = "https://", certs.listen(listener)
	}
	s.base += bound.String()
	return s, nil
}

func loopbackOf(addr netip.Addr) netip.Addr {
	if addr.Is4() {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.IPv6Loopback()
}

// Close releases the address of a server that does not serve.
func (s *Server) Close() error { return s.listener.Close() }

// Exec returns the URL for a request that has been found good.
func (s *Server) Exec(req *runtimeapi.ExecRequest) (url string, err error) { return s.url("exec", req) }

// Attach is as Exec.
func (s *Server) Attach(req *runtimeapi.AttachRequest) (url string, err error) {
	return s.url("attach", req)
}

// PortForward is as Exec.
func (s *Server) PortForward(req *runtimeapi.PortForwardRequest) (url string, err error) {
	return s.url("portforward", req)
}

func (s *Server) url(verb string, req any) (string, error) {
	token, err := s.tokens.issue(verb, req)
	if err != nil {
		return "", err
	}
	return s.base + "/" + verb + "/" + token, nil
}

// Serve answers clients until ctx ends. Then every session is told so, and its
// client, and Serve returns when all have ended.
func (s *Server) Serve(ctx context.Context, runtime Runtime) error {
	sessions, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	log := klog.FromContext(ctx)
	server := &http.Server{
		Handler:           &handler{server: s, runtime: runtime, ctx: sessions},
		ReadHeaderTimeout: requestTimeout,
		ReadTimeout:       requestTimeout, // of a body, which nobody reads; lifted at the upgrade
		MaxHeaderBytes:    maxRequest,
		Protocols:         new(http.Protocols),
		ConnState:         newcomers(),
		ErrorLog:          quiet(log),
	}
	server.Protocols.SetHTTP1(true) // upgrades are HTTP/1.1's
	server.SetKeepAlivesEnabled(false)
	served := make(chan error, 1)
	go func() { served <- server.Serve(s.listener) }() // ends with Close
	var failed error
	select {
	case err := <-served:
		failed = fmt.Errorf("serving streaming clients on %s: %w", s.base, err)
	case <-ctx.Done():
	}
	_ = server.Close() // the sessions' connections are not the server's any more
	return errors.Join(failed, s.end(stop))
}

// end tells all sessions to end, and waits for them.
func (s *Server) end(stop context.CancelCauseFunc) error {
	s.mu.Lock()
	s.stopping = true
	n := s.sessions
	s.mu.Unlock()
	stop(errStopping)
	ended := make(chan struct{})
	go func() { s.running.Wait(); close(ended) }() // ends when the sessions do
	select {
	case <-ended:
		return nil
	case <-time.After(stopWait):
		return fmt.Errorf("streaming sessions, of %d, have not ended %v after they were told to: %w", n, stopWait, context.DeadlineExceeded)
	}
}

// begin lets a session begin, if it may; finish follows.
func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping || s.sessions >= maxSessions {
		return false
	}
	s.sessions++
	s.running.Add(1)
	return true
}

func (s *Server) finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions--
	s.running.Done()
}

// newcomers bounds the connections that have not shown a token, which anybody
// on the node can make: more are closed at once, so that they take no
// descriptors from the daemon.
func newcomers() func(net.Conn, http.ConnState) {
	var n atomic.Int64
	return func(conn net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			if n.Add(1) > maxNewcomers {
				_ = conn.Close()
			}
		case http.StateHijacked, http.StateClosed:
			n.Add(-1)
		}
	}
}

// quiet is a log for what net/http has to say about clients: failed handshakes.
func quiet(logger klog.Logger) *log.Logger {
	return log.New(logWriter{logger.V(4)}, "", 0)
}

type logWriter struct{ log klog.Logger }

func (w logWriter) Write(p []byte) (int, error) {
	w.log.Info("Streaming server", "detail", strings.TrimSpace(string(p)))
	return len(p), nil
}
