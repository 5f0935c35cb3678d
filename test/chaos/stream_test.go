package chaos

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing/iotest"
	"time"

	"github.com/gorilla/websocket"
	"github.com/moby/spdystream"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// attach asks for a session with a container that answers to what is typed, and types. Without stdin it looks for a while.
func (w *worker) attach(c *container, argument uint32) error {
	stdin := c.plan.stdin && !c.plan.once && !c.plan.tty && !c.plan.exits
	return w.ask(c, "Attach", func(ctx context.Context) error {
		sent := time.Now()
		resp, err := w.Runtime.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: c.id, Stdin: stdin, Stdout: true, Stderr: !c.plan.tty, Tty: c.plan.tty})
		if err != nil {
			return err
		}
		return w.streamed(ctx, sent, attached(ctx, resp.GetUrl(), stdin, fmt.Sprint(argument)))
	})
}

// streamed makes the error of a session that of a request.
func (w *worker) streamed(ctx context.Context, sent time.Time, err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		<-ctx.Done() // the socket's timer was faster, of the same deadline
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return status.FromContextError(ctx.Err()).Err()
	case w.faults.explain(sent):
		return status.Error(codes.Unavailable, err.Error())
	}
	return err
}

const (
	channelStdin  = 0
	channelStdout = 1
	attachedFor   = 20 * time.Millisecond // to a container that says nothing
)

// attached is a session: the word that is typed must be said by the container.
func attached(ctx context.Context, url string, stdin bool, word string) error {
	dialer := websocket.Dialer{Subprotocols: []string{"v5.channel.k8s.io"}}
	conn, resp, err := dialer.DialContext(ctx, "ws"+strings.TrimPrefix(url, "http"), nil)
	if err != nil {
		return fmt.Errorf("connecting to %s: %w", url, err)
	}
	_ = resp.Body.Close()
	defer conn.NetConn().Close()
	defer context.AfterFunc(ctx, func() { _ = conn.NetConn().Close() })()
	if !stdin {
		time.Sleep(attachedFor)
		return nil
	}
	if err := conn.WriteMessage(websocket.BinaryMessage, append([]byte{channelStdin}, word+"\n"...)); err != nil {
		return fmt.Errorf("typing: %w", err)
	}
	var got string
	for !strings.Contains(got, "got "+word+"\n") {
		_, message, err := conn.ReadMessage()
		if err != nil {
			return fmt.Errorf("typed %q, got %q: %w", word, got, err)
		}
		if len(message) > 0 && message[0] == channelStdout {
			got += string(message[1:])
		}
	}
	return nil
}

// webPort is where a container with plan.web answers.
const webPort = 8080

// forward asks the pod's web server, if it has one that has come up.
func (w *worker) forward() error {
	c := w.pod.containers[0]
	if !c.plan.web || c.removed || c.exit != nil || !w.isReady(c) {
		return nil
	}
	return w.ask(c, "PortForward", func(ctx context.Context) error {
		sent := time.Now()
		resp, err := w.Runtime.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: w.pod.id, Port: []int32{webPort}})
		if err != nil {
			return err
		}
		return w.streamed(ctx, sent, forwarded(ctx, resp.GetUrl()))
	})
}

// forwarded asks through a session of SPDY what is at the root of the web server.
func forwarded(ctx context.Context, to string) error {
	req, err := http.NewRequest(http.MethodPost, to, nil)
	if err != nil {
		return err
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", req.URL.Host)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	req.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"SPDY/3.1"}, "X-Stream-Protocol-Version": {"portforward.k8s.io"}}
	if err := req.Write(conn); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(iotest.OneByteReader(conn)), req) // what follows the head is SPDY's
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		return fmt.Errorf("asking for SPDY: %v, %w", resp, err)
	}
	session, err := spdystream.NewConnection(conn, false)
	if err != nil {
		return err
	}
	go session.Serve(spdystream.NoOpStreamHandler) // ends with the connection
	open := func(kind string) (*spdystream.Stream, error) {
		return session.CreateStream(http.Header{"Streamtype": {kind}, "Port": {fmt.Sprint(webPort)}, "Requestid": {"1"}}, nil, false)
	}
	failed, err := open("error")
	if err != nil {
		return err
	}
	_ = failed.Close()
	data, err := open("data")
	if err != nil {
		return err
	}
	if _, err := io.WriteString(data, "GET /none HTTP/1.0\r\n\r\n"); err != nil {
		return err
	}
	got, err := io.ReadAll(data)
	if err == nil && !strings.Contains(string(got), "404 Not Found") {
		text, _ := io.ReadAll(failed)
		err = fmt.Errorf("the web server says %q, the session %q", got, text)
	}
	return err
}
