package streaming

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

const (
	channelStdin = iota
	channelStdout
	channelStderr
	channelError
	channelResize
	channelClose = 255 // of version 5: the next byte is the channel that the client half-closes
)

// channelConn carries channels over a WebSocket: each message begins with the
// number of its channel. Messages pass in pieces, so their length is no matter.
type channelConn struct {
	ws        *websocket.Conn
	channels  []*channel // nil where the client's messages mean nothing
	base64    bool       // messages are text, the channel is a digit, the rest in base64
	halfClose bool       // version 5
	pongs     *ponger

	writing sync.Mutex // held while a message is written
}

func newChannelConn(ws *websocket.Conn, n int) *channelConn {
	protocol := ws.Subprotocol()
	return &channelConn{
		ws: ws, channels: make([]*channel, n), pongs: answerPings(ws), halfClose: protocol == protocolV5,
		base64: protocol == protocolV1Base64 || protocol == protocolV4Base64,
	}
}

// channel makes a channel that the server writes to, and if in is not nil the client.
func (c *channelConn) channel(id byte, in *inbox) *channel {
	ch := &channel{conn: c, id: id, in: in}
	if in != nil {
		c.channels[id] = ch
	}
	return ch
}

// commandChannels are the channels of exec and attach.
func commandChannels(ws *websocket.Conn, want wants) (transport, *command) {
	c := newChannelConn(ws, channelResize+1)
	cmd := &command{
		fault: c.channel(channelError, nil), resize: c.channel(channelResize, newInbox()).in,
		asJSON: ws.Subprotocol() == protocolV5 || ws.Subprotocol() == protocolV4 || ws.Subprotocol() == protocolV4Base64,
	}
	first := cmd.fault
	if want.stderr {
		cmd.stderr = c.channel(channelStderr, nil)
		first = cmd.stderr
	}
	if want.stdout {
		cmd.stdout = c.channel(channelStdout, nil)
		first = cmd.stdout
	}
	if want.stdin {
		cmd.stdin = c.channel(channelStdin, newInbox())
	}
	// An empty message tells the client that the session has begun.
	_ = first.(*channel).message(nil) // an error will be serve's too
	return c, cmd
}

// serve reads messages until the client goes.
func (c *channelConn) serve() error {
	err := c.readMessages()
	_ = c.ws.Close() // or a pong might never be written
	c.pongs.stop()
	for _, ch := range c.channels {
		if ch != nil {
			ch.in.end(errGone)
		}
	}
	return err
}

func (c *channelConn) readMessages() error {
	for {
		_, message, err := c.ws.NextReader()
		if err != nil {
			return whyClosed(err)
		}
		if err := c.receive(message); err != nil {
			return err
		}
	}
}

// receive moves a message's bytes to its channel. Those of channels that the
// client has no business with are thrown away, as by other servers.
func (c *channelConn) receive(message io.Reader) error {
	var head [1]byte
	if _, err := io.ReadFull(message, head[:]); err == io.EOF {
		return nil
	} else if err != nil {
		return err
	}
	id := head[0]
	if c.halfClose && id == channelClose {
		return c.closed(message)
	}
	if c.base64 {
		id -= '0'
		message = base64.NewDecoder(base64.StdEncoding, message)
	}
	if int(id) >= len(c.channels) || c.channels[id] == nil {
		_, err := io.Copy(io.Discard, message)
		return err
	}
	return c.channels[id].in.fill(message, -1, func() error { return stillThere(c.ws.NetConn(), &c.writing, nothingWebSocket) })
}

// closed is the client's half-close of a channel.
func (c *channelConn) closed(message io.Reader) error {
	var ids [2]byte
	n, err := io.ReadFull(message, ids[:])
	if n != 1 || !errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("the client closed not exactly one channel")
	}
	if int(ids[0]) >= len(c.channels) {
		return fmt.Errorf("the client closed channel %d, which there is not", ids[0])
	}
	if ch := c.channels[ids[0]]; ch != nil {
		ch.in.end(io.EOF)
	}
	return nil
}

// goodbye ends what waits to read a channel, and the WebSocket.
func (c *channelConn) goodbye() {
	for _, ch := range c.channels {
		if ch != nil {
			ch.in.stop()
		}
	}
	closeMessage(c.ws)
}

// closeMessage ends a WebSocket. It has no deadline of its own: a client that
// reads slowly, and does not get it, would take the session for one that was cut
// off, and the exit code with it.
func closeMessage(ws *websocket.Conn) {
	_ = ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Time{})
}

// whyClosed is errGone for the ways in which clients leave.
func whyClosed(err error) error {
	var closed *websocket.CloseError
	if errors.As(err, &closed) || errors.Is(err, io.EOF) {
		return errGone
	}
	return err
}

// channel is one of a channelConn's, with in for what the client sends, or nil.
type channel struct {
	conn *channelConn
	id   byte
	in   *inbox
}

func (ch *channel) Read(p []byte) (int, error)         { return ch.in.Read(p) }
func (ch *channel) WriteTo(w io.Writer) (int64, error) { return ch.in.WriteTo(w) }

// Close lets go of what the client sends. The protocols have nothing to tell it.
func (ch *channel) Close() error {
	if ch.in != nil {
		ch.in.stop()
	}
	return nil
}

// Write sends p in messages of at most chunkSize bytes.
func (ch *channel) Write(p []byte) (total int, err error) {
	most := chunkSize
	if ch.conn.base64 {
		most = chunkSize / 4 * 3
	}
	for len(p) > 0 {
		n := min(len(p), most)
		if err := ch.message(p[:n]); err != nil {
			return total, err
		}
		p, total = p[n:], total+n
	}
	return total, nil
}

// message sends one message, with at most chunkSize bytes after the channel.
func (ch *channel) message(p []byte) error {
	frame := frames.Get().(*[frameHead + chunkSize]byte)
	defer frames.Put(frame)
	kind, body := websocket.BinaryMessage, append(frame[:0], ch.id)
	if ch.conn.base64 {
		kind, body = websocket.TextMessage, base64.StdEncoding.AppendEncode(append(frame[:0], '0'+ch.id), p)
	} else {
		body = append(body, p...)
	}
	ch.conn.writing.Lock()
	defer ch.conn.writing.Unlock()
	if err := ch.conn.ws.WriteMessage(kind, body); err != nil {
		_ = ch.conn.ws.NetConn().Close()
		return fmt.Errorf("writing to the client: %w", err)
	}
	return nil
}

// ponger answers pings, of which the latest counts. It does so apart from
// whoever reads the WebSocket: a client that does not read its pongs could hold
// up its own input otherwise.
type ponger struct {
	pings chan string
	done  chan struct{}
}

func answerPings(ws *websocket.Conn) *ponger {
	p := &ponger{pings: make(chan string, 1), done: make(chan struct{})}
	ws.SetPingHandler(func(data string) error { // called by NextReader
		select {
		case <-p.pings:
		default:
		}
		p.pings <- data
		return nil
	})
	go func() { // ends with stop, and a write in it with the connection
		defer close(p.done)
		for data := range p.pings {
			_ = ws.WriteControl(websocket.PongMessage, []byte(data), time.Time{})
		}
	}()
	return p
}

// stop is called by whoever has read the WebSocket, of a connection that is closed.
func (p *ponger) stop() {
	close(p.pings)
	<-p.done
}

// tunnel is a WebSocket whose binary messages are a stream of bytes: SPDY, for
// which proxies on the way need know nothing but WebSockets.
type tunnel struct {
	net.Conn // closed, asked for addresses; never read or written
	ws       *websocket.Conn
	message  io.Reader // what is read at present, or nil
}

// Read is of one goroutine.
func (t *tunnel) Read(p []byte) (int, error) {
	for {
		if t.message == nil {
			kind, message, err := t.ws.NextReader()
			if err != nil {
				return 0, whyClosed(err)
			}
			if kind != websocket.BinaryMessage {
				return 0, errors.New("the client sent text through a tunnel")
			}
			t.message = message
		}
		n, err := t.message.Read(p)
		if err == io.EOF {
			t.message, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// Write is of one goroutine at a time.
func (t *tunnel) Write(p []byte) (int, error) {
	if err := t.ws.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// CloseWrite ends the WebSocket in an orderly way.
func (t *tunnel) CloseWrite() error {
	closeMessage(t.ws)
	return nil
}

// NetConn is the connection below.
func (t *tunnel) NetConn() net.Conn { return t.Conn }
