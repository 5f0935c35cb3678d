package streaming

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/gorilla/websocket"
	"k8s.io/klog/v2"
)

// The protocol of exec and attach, by its names. Version 2 ended races of
// version 1 that were the clients', 3 brought resizes, 4 the Status as JSON,
// and 5, of WebSockets only, the half-close.
const (
	protocolV1       = "channel.k8s.io"
	protocolV2       = "v2.channel.k8s.io"
	protocolV3       = "v3.channel.k8s.io"
	protocolV4       = "v4.channel.k8s.io"
	protocolV5       = "v5.channel.k8s.io"
	protocolV1Base64 = "base64.channel.k8s.io"
	protocolV4Base64 = "v4.base64.channel.k8s.io"
)

var (
	commandSPDY      = []string{protocolV4, protocolV3, protocolV2, protocolV1}
	commandWebSocket = []string{protocolV5, protocolV4, protocolV4Base64, protocolV1, protocolV1Base64}
)

// wants are the streams of a request.
type wants struct{ tty, stdin, stdout, stderr bool }

func wanted(req interface {
	GetTty() bool
	GetStdin() bool
	GetStdout() bool
	GetStderr() bool
}) wants {
	return wants{req.GetTty(), req.GetStdin(), req.GetStdout(), req.GetStderr()}
}

// command is the streams of exec or attach; those that the request does not want are nil.
type command struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	fault          io.Writer // what becomes of the command
	resize         *inbox
	asJSON         bool // fault gets a Status
}

// run is a session in a container.
type run func(context.Context, Streams) (exitCode int, err error)

// command serves a client of exec or attach.
func (h *handler) command(w http.ResponseWriter, r *http.Request, want wants, run run) {
	if websocket.IsWebSocketUpgrade(r) {
		ws, conn, ok := upgradeWebSocket(w, r, commandWebSocket)
		if !ok {
			return
		}
		t, cmd := commandChannels(ws, want)
		h.hold(conn, t, func(ctx context.Context) error { return cmd.run(ctx, run, conn) })
		return
	}
	conn, protocol, ok := upgradeSPDY(w, r, commandSPDY)
	if !ok {
		return
	}
	opening := newOpening(want, protocol == protocolV3 || protocol == protocolV4)
	h.hold(conn, newSPDY(conn, opening.opened), func(ctx context.Context) error {
		cmd, err := opening.wait(ctx, h.server.cfg.CreationTimeout)
		if err != nil {
			return err
		}
		cmd.asJSON = protocol == protocolV4
		return cmd.run(ctx, run, conn)
	})
}

// run runs the session and tells the client what became of it.
func (c *command) run(ctx context.Context, run run, conn io.Closer) error {
	s := Streams{Stdin: c.stdin, Stdout: c.stdout, Stderr: c.stderr}
	if c.resize != nil {
		var stop func()
		s.Resize, stop = c.resizes(ctx)
		defer stop()
	}
	exitCode := 0
	err := guarded(ctx, func() (err error) { exitCode, err = run(ctx, s); return err })
	err = reasonOf(ctx, err)
	if err != nil { // a client who does not read is cut off, or nothing gets through to him
		defer time.AfterFunc(farewell, func() { _ = conn.Close() }).Stop()
	}
	for _, out := range []io.Writer{c.stdout, c.stderr} {
		closeStream(out)
	}
	if text := outcome(exitCode, err).encode(c.asJSON); len(text) > 0 {
		_, _ = c.fault.Write(text) // whoever has gone does not care
	}
	closeStream(c.fault)
	return err
}

// resizes reads the client's resize events until stop is called.
func (c *command) resizes(ctx context.Context) (_ <-chan TerminalSize, stop func()) {
	sizes, done := make(chan TerminalSize, 1), make(chan struct{})
	go func() { // ends when c.resize is stopped
		defer close(done)
		if err := readResizes(c.resize, sizes); err != nil && !errors.Is(err, errGone) && !errors.Is(err, errEnded) {
			klog.FromContext(ctx).V(2).Info("A client's resize events are not understood", "err", err)
		}
		c.resize.stop() // what follows is thrown away
	}()
	return sizes, func() {
		c.resize.stop()
		<-done
		close(sizes)
	}
}

// closeStream half-closes a stream of a protocol that has half-closes.
func closeStream(w io.Writer) {
	if half, ok := w.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
}

// opening is the streams that a SPDY client has to open before its command
// runs. opened fills it, wait reads it when it is complete.
type opening struct {
	missing  map[string]bool // names of streams
	streams  map[string]*spdyStream
	complete chan struct{}
}

func newOpening(want wants, resizes bool) *opening {
	o := &opening{missing: map[string]bool{"error": true}, streams: map[string]*spdyStream{}, complete: make(chan struct{})}
	for name, wanted := range map[string]bool{
		"stdin": want.stdin, "stdout": want.stdout, "stderr": want.stderr, "resize": want.tty && resizes,
	} {
		if wanted {
			o.missing[name] = true
		}
	}
	return o
}

// opened takes each stream once, and none that the request does not want.
func (o *opening) opened(s *spdyStream) (start func(), err error) {
	name := s.headers.Get("streamType")
	if !o.missing[name] {
		return nil, fmt.Errorf("stream %.32q is not wanted", name)
	}
	delete(o.missing, name)
	return func() {
		o.streams[name] = s
		if len(o.missing) == 0 {
			close(o.complete)
		}
	}, nil
}

// wait waits until the client has opened all streams.
func (o *opening) wait(ctx context.Context, timeout time.Duration) (*command, error) {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-o.complete:
	case <-timer.C:
		return nil, fmt.Errorf("the client has not opened its streams within %v", timeout)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	cmd := &command{fault: o.streams["error"]}
	if s := o.streams["stdin"]; s != nil {
		cmd.stdin = s
	}
	if s := o.streams["stdout"]; s != nil {
		cmd.stdout = s
	}
	if s := o.streams["stderr"]; s != nil {
		cmd.stderr = s
	}
	if s := o.streams["resize"]; s != nil {
		cmd.resize = s.in
	}
	return cmd, nil
}
