package streaming

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"

	"github.com/moby/spdystream/spdy"
)

const (
	frameHead    = 8
	maxControl   = 16 << 10 // bytes of a control frame; those of Kubernetes' clients have about 100
	maxHeaders   = 32       // headers of a stream
	maxFieldSize = 4 << 10  // bytes of a header's name or value, uncompressed
)

var (
	errGone  = errors.New("the client has gone")
	errReset = errors.New("the client has reset the stream")
)

// spdyConn is the server's end of a SPDY/3.1 connection. serve reads it, any
// goroutine writes. Control frames are package spdy's to parse; data frames
// go from the socket to their stream in pieces, whatever length they announce.
type spdyConn struct {
	conn   net.Conn
	gone   func() error // asks whether the client has gone, while r is not read
	r      *bufio.Reader
	framer *spdy.Framer     // reads frame
	frame  io.LimitedReader // of r: the control frame that is read

	// opened is asked, by the goroutine of serve, about a new stream. An error
	// refuses it; otherwise it is confirmed, and then start runs.
	opened func(*spdyStream) (start func(), err error)

	posts     posts
	confirmed bool // a stream was; serve's

	writing sync.Mutex // held while a frame is written; guards ended
	ended   bool       // our last frame was written

	mu      sync.Mutex    // guards what follows
	lastID  spdy.StreamId // the highest of the client's
	streams map[spdy.StreamId]*spdyStream
}

func newSPDY(conn net.Conn, opened func(*spdyStream) (func(), error)) *spdyConn {
	c := &spdyConn{
		conn: conn, r: bufio.NewReaderSize(conn, chunkSize), opened: opened, streams: map[spdy.StreamId]*spdyStream{},
		posts: posts{due: make(chan struct{}, 1)},
	}
	c.frame.R = c.r
	c.gone = func() error { return stillThere(conn, &c.writing, nothingSPDY) }
	framer, err := spdy.NewFramerWithOptions(io.Discard, &c.frame,
		spdy.WithMaxControlFramePayloadSize(maxControl), spdy.WithMaxHeaderCount(maxHeaders), spdy.WithMaxHeaderFieldSize(maxFieldSize))
	if err != nil {
		panic(err) // zlib refused a constant
	}
	c.framer = framer
	return c
}

// serve reads frames until the client goes, does what it must not, or the
// connection is closed. All streams have ended then.
func (c *spdyConn) serve() error {
	var posting sync.WaitGroup
	posting.Go(c.sendPosts)
	err := c.readFrames()
	_ = c.conn.Close() // or a post might never be sent
	close(c.posts.due)
	posting.Wait()
	if errors.Is(err, io.EOF) {
		err = errGone
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.streams {
		s.in.end(errGone)
	}
	return err
}

func (c *spdyConn) readFrames() error {
	for {
		head, err := c.r.Peek(frameHead)
		if err != nil {
			return err
		}
		length := binary.BigEndian.Uint32(head[4:]) & 0xffffff
		if head[0]&0x80 == 0 {
			id, fin := spdy.StreamId(binary.BigEndian.Uint32(head)), spdy.DataFlags(head[4])&spdy.DataFlagFin != 0
			_, _ = c.r.Discard(frameHead)
			if err := c.data(id, int64(length), fin); err != nil {
				return err
			}
			continue
		}
		if length > maxControl {
			return fmt.Errorf("the client sent a SPDY control frame of %d bytes", length)
		}
		c.frame.N = frameHead + int64(length) // what the framer makes of a length is not trusted
		frame, err := c.framer.ReadFrame()
		if err == nil && c.frame.N > 0 {
			err = fmt.Errorf("it has %d bytes too many", c.frame.N)
		}
		if err != nil {
			return fmt.Errorf("reading a SPDY control frame: %w", err)
		}
		if err := c.handle(frame); err != nil {
			return err
		}
	}
}

// data moves the payload of a data frame to its stream.
func (c *spdyConn) data(id spdy.StreamId, length int64, fin bool) error {
	c.mu.Lock()
	s, last := c.streams[id], c.lastID
	c.mu.Unlock()
	if id > last {
		return fmt.Errorf("the client sent data on SPDY stream %d, which it has not opened", id)
	}
	if s == nil { // it was refused, or has been closed a moment ago
		_, err := io.CopyN(io.Discard, c.r, length)
		return err
	}
	if err := s.in.fill(c.r, length, c.gone); err != nil {
		return err
	}
	if fin {
		s.in.end(io.EOF)
	}
	return nil
}

func (c *spdyConn) handle(frame spdy.Frame) error {
	switch f := frame.(type) {
	case *spdy.SynStreamFrame:
		return c.open(f)
	case *spdy.RstStreamFrame:
		if s := c.stream(f.StreamId); s != nil {
			s.drop(errReset)
		}
	case *spdy.PingFrame:
		if f.Id%2 == 1 { // the client's; even ones would be answers to ours
			return c.post(controlFrame(spdy.TypePing, f.Id))
		}
	case *spdy.GoAwayFrame:
		return io.EOF
	}
	return nil // settings, windows and later headers say nothing here
}

func (c *spdyConn) open(f *spdy.SynStreamFrame) error {
	s := &spdyStream{conn: c, id: f.StreamId, headers: f.Headers, in: newInbox()}
	if err := c.number(s.id); err != nil {
		return err
	}
	start, err := c.opened(s)
	if err != nil {
		return c.post(controlFrame(spdy.TypeRstStream, uint32(s.id), uint32(spdy.RefusedStream)))
	}
	if f.CFHeader.Flags&spdy.ControlFlagFin != 0 {
		s.in.end(io.EOF)
	}
	c.mu.Lock()
	c.streams[s.id] = s
	c.mu.Unlock()
	if err := c.post(c.confirmation(s.id)); err != nil {
		return err
	}
	start()
	return nil
}

// number takes the id of a new stream, which must be a client's and higher than the last.
func (c *spdyConn) number(id spdy.StreamId) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if id%2 == 0 || id <= c.lastID || id>>31 != 0 {
		return fmt.Errorf("the client opened SPDY stream %d after %d", id, c.lastID)
	}
	c.lastID = id
	return nil
}

func (c *spdyConn) stream(id spdy.StreamId) *spdyStream {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.streams[id]
}

func (c *spdyConn) forget(s *spdyStream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.streams, s.id)
}

// goodbye says that no stream is accepted any more, after which clients leave.
// What waits to read a stream returns.
func (c *spdyConn) goodbye() {
	c.mu.Lock()
	last := c.lastID
	for _, s := range c.streams {
		s.in.stop()
	}
	c.mu.Unlock()
	c.writing.Lock()
	defer c.writing.Unlock()
	if c.send(controlFrame(spdy.TypeGoAway, uint32(last), uint32(spdy.GoAwayOK))) == nil {
		c.ended = true
		closeWrite(c.conn)
	}
}

// spdyStream is a stream that the client has opened. Reading ends with io.EOF
// at the client's half-close, with errReset when the client has reset it and
// with errGone when the connection has ended.
type spdyStream struct {
	conn    *spdyConn
	id      spdy.StreamId
	headers http.Header
	in      *inbox

	mu     sync.Mutex // guards closed
	closed error      // why nothing can be written any more; nil while it can
}

func (s *spdyStream) Read(p []byte) (int, error)         { return s.in.Read(p) }
func (s *spdyStream) WriteTo(w io.Writer) (int64, error) { return s.in.WriteTo(w) }

// shut lets nothing be written any more, for err, and says whether it was open.
func (s *spdyStream) shut(err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed != nil {
		return false
	}
	s.closed = err
	return true
}

func (s *spdyStream) writable() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// drop ends both directions of a stream that the client has reset.
func (s *spdyStream) drop(err error) {
	s.shut(err)
	s.in.end(err)
	s.conn.forget(s)
}

// CloseWrite is the server's half-close.
func (s *spdyStream) CloseWrite() error {
	var frame [frameHead]byte
	binary.BigEndian.PutUint32(frame[:], uint32(s.id))
	frame[4] = byte(spdy.DataFlagFin)
	s.conn.writing.Lock()
	defer s.conn.writing.Unlock()
	if !s.shut(errEnded) {
		return nil
	}
	return s.conn.send(frame[:])
}

// Close ends both directions: what the client goes on to send is thrown away.
func (s *spdyStream) Close() error {
	s.in.stop()
	s.conn.forget(s)
	return s.CloseWrite()
}

// Reset ends both directions, and tells the client that it is no orderly end.
func (s *spdyStream) Reset() {
	s.in.stop()
	s.conn.forget(s)
	if s.shut(errReset) {
		_ = s.conn.write(controlFrame(spdy.TypeRstStream, uint32(s.id), uint32(spdy.Cancel)))
	}
}

var frames = sync.Pool{New: func() any { return new([frameHead + chunkSize]byte) }}

// Write sends p in frames of at most chunkSize bytes.
func (s *spdyStream) Write(p []byte) (total int, err error) {
	frame := frames.Get().(*[frameHead + chunkSize]byte)
	defer frames.Put(frame)
	for len(p) > 0 {
		n := copy(frame[frameHead:], p)
		if err := s.sendData(frame, n, 0); err != nil {
			return total, err
		}
		p, total = p[n:], total+n
	}
	return total, nil
}

// ReadFrom implements io.ReaderFrom, which io.Copy uses: it spares a copy.
func (s *spdyStream) ReadFrom(r io.Reader) (total int64, err error) {
	frame := frames.Get().(*[frameHead + chunkSize]byte)
	defer frames.Put(frame)
	for {
		n, err := r.Read(frame[frameHead:])
		if n > 0 {
			if err := s.sendData(frame, n, 0); err != nil {
				return total, err
			}
			total += int64(n)
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// sendData sends the n bytes behind the head of frame.
func (s *spdyStream) sendData(frame *[frameHead + chunkSize]byte, n int, flags spdy.DataFlags) error {
	s.conn.writing.Lock()
	defer s.conn.writing.Unlock()
	if err := s.writable(); err != nil {
		return err
	}
	binary.BigEndian.PutUint32(frame[:], uint32(s.id))
	binary.BigEndian.PutUint32(frame[4:], uint32(flags)<<24|uint32(n))
	return s.conn.send(frame[:frameHead+n])
}
