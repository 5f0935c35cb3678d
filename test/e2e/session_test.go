package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Channels of a WebSocket with exec or attach, in version 5 of the protocol.
const (
	channelStdin, channelStdout, channelStderr, channelError, channelResize = 0, 1, 2, 3, 4
	channelClose                                                            = 255
)

// session is a client of exec or attach that does no more than its test says.
type session struct {
	t    testing.TB
	conn *websocket.Conn
	done sync.WaitGroup

	mu  sync.Mutex
	got [4]bytes.Buffer // by channel
}

// connect connects to a URL that Exec or Attach has answered. Nothing is read before [session.read].
func (n *node) connect(url string) *session {
	n.t.Helper()
	dialer := websocket.Dialer{Subprotocols: []string{"v5.channel.k8s.io"}, HandshakeTimeout: 30 * time.Second}
	conn, resp, err := dialer.Dial("ws"+strings.TrimPrefix(url, "http"), nil)
	if err != nil {
		n.t.Fatalf("connecting to %s: %v", url, err)
	}
	_ = resp.Body.Close()
	s := &session{t: n.t, conn: conn}
	n.t.Cleanup(func() { s.close() })
	return s
}

// session begins one with a command in the container.
func (c *container) session(req *runtimeapi.ExecRequest, argv ...string) *session {
	c.t.Helper()
	req.ContainerId, req.Cmd = c.id, argv
	resp, err := c.Runtime.Exec(c.context(), req)
	if err != nil {
		c.t.Fatalf("exec %q in container %s: %v", argv, c.name, err)
	}
	return c.connect(resp.GetUrl())
}

// close ends the connection, as a client that is killed.
func (s *session) close() {
	_ = s.conn.NetConn().Close()
	s.done.Wait()
}

// read collects in the background what comes.
func (s *session) read() *session {
	s.done.Go(func() {
		for {
			_, message, err := s.conn.ReadMessage()
			if err != nil {
				return
			}
			if len(message) > 0 && int(message[0]) < len(s.got) {
				s.mu.Lock()
				s.got[message[0]].Write(message[1:])
				s.mu.Unlock()
			}
		}
	})
	return s
}

// text is what has come on a channel.
func (s *session) text(channel int) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got[channel].String()
}

func (s *session) send(channel byte, data string) error {
	return s.conn.WriteMessage(websocket.BinaryMessage, append([]byte{channel}, data...))
}

func (s *session) resize(columns, rows uint16) error {
	return s.send(channelResize, fmt.Sprintf(`{"Width":%d,"Height":%d}`, columns, rows))
}

// outcome waits for the end that the server makes, and returns the exit code or the error that it tells.
func (s *session) outcome() (exitCode int, err error) {
	s.t.Helper()
	s.done.Wait()
	var status struct {
		Status, Message, Reason string
		Details                 struct {
			Causes []struct{ Reason, Message string }
		}
	}
	text := s.text(channelError)
	if err := json.Unmarshal([]byte(text), &status); err != nil {
		return 0, fmt.Errorf("the session's end is %q: %w", text, err)
	}
	switch {
	case status.Status == "Success":
		return 0, nil
	case status.Reason == "NonZeroExitCode" && len(status.Details.Causes) == 1:
		_, err := fmt.Sscan(status.Details.Causes[0].Message, &exitCode)
		return exitCode, err
	}
	return 0, errors.New(status.Message)
}
