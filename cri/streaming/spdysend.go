package streaming

import (
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/moby/spdystream/spdy"
)

// maxPosts bounds the frames that wait to be sent: the confirmations of a
// port-forward's streams, many times over.
const maxPosts = 256 << 10

// posts are control frames that the goroutine of serve has to send. It does not
// do so itself: a client that does not read its output holds up whoever writes,
// but not its own input.
type posts struct {
	due chan struct{} // of one element: there are some; closed by serve at its end

	mu     sync.Mutex // guards frames
	frames []byte
}

// post sends a frame before the next that anybody writes, and soon. Only if too
// many wait, the caller does.
func (c *spdyConn) post(frame []byte) error {
	c.posts.mu.Lock()
	c.posts.frames = append(c.posts.frames, frame...)
	full := len(c.posts.frames) > maxPosts
	c.posts.mu.Unlock()
	if full {
		return c.write(nil)
	}
	signal(c.posts.due)
	return nil
}

// sendPosts sends what nobody's frame has taken along, until serve has ended.
func (c *spdyConn) sendPosts() {
	for range c.posts.due {
		_ = c.write(nil) // an error ends the connection, and so serve
	}
}

// write sends a control frame, nil for none but those that are posted.
func (c *spdyConn) write(frame []byte) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	return c.send(frame)
}

// send writes what is posted and a whole frame, with writing held. After half a
// frame nothing that follows can be understood, so an error ends the connection.
// After the last frame nothing is written: a client may still be reading.
func (c *spdyConn) send(frame []byte) error {
	c.posts.mu.Lock()
	first := c.posts.frames
	c.posts.frames = nil
	c.posts.mu.Unlock()
	if c.ended {
		return errEnded
	}
	for _, b := range [][]byte{first, frame} {
		if len(b) == 0 {
			continue
		}
		if _, err := c.conn.Write(b); err != nil {
			_ = c.conn.Close()
			return fmt.Errorf("writing to the client: %w", err)
		}
	}
	return nil
}

// controlFrame is a frame whose payload is numbers.
func controlFrame(kind spdy.ControlFrameType, payload ...uint32) []byte {
	frame := binary.BigEndian.AppendUint32(nil, 1<<31|spdy.Version<<16|uint32(kind))
	frame = binary.BigEndian.AppendUint32(frame, uint32(4*len(payload)))
	for _, n := range payload {
		frame = binary.BigEndian.AppendUint32(frame, n)
	}
	return frame
}

// What SPDY compresses of headers is one zlib stream for all frames of a
// direction. Ours says that there are none, in blocks that are stored: package
// spdy's compressor takes 0.8 MiB for a connection.
var (
	zlibHead  = []byte{0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2}                   // with the checksum of SPDY's dictionary
	noHeaders = []byte{0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff} // a stored block of a 32-bit 0, and the empty one of a flush
	synReply  = []byte{0x80, spdy.Version, 0, byte(spdy.TypeSynReply)}       // and then its length
)

// confirmation tells the client that its stream is accepted. They are sent in
// the order in which they are made, by serve.
func (c *spdyConn) confirmation(id spdy.StreamId) []byte {
	var block []byte
	if !c.confirmed {
		block, c.confirmed = append(block, zlibHead...), true
	}
	block = append(block, noHeaders...)
	frame := binary.BigEndian.AppendUint32(append([]byte(nil), synReply...), uint32(4+len(block)))
	return append(binary.BigEndian.AppendUint32(frame, uint32(id)), block...)
}
