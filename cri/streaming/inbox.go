package streaming

import (
	"errors"
	"io"
	"sync"
	"time"
)

const (
	chunkSize = 32 << 10 // what is moved at a time
	inboxSize = 1 << 20  // what one stream of a client may have sent before anybody has read it

	// gonePoll is how often a connection that is not read, because nobody takes
	// what came of it, is asked whether the client has gone.
	gonePoll = time.Second
)

// errEnded is what a stream of a session that is over answers.
var errEnded = errors.New("the streaming session has ended")

var chunks = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// inbox holds what a client has sent on one stream until somebody reads it.
// One goroutine fills it, that which reads the connection, and one reads it.
// When it is full, nothing more is read of the connection: that is the
// backpressure, which the streams of one connection share, for the protocols
// have no windows (SPDY has, but no Kubernetes client uses them).
type inbox struct {
	ready chan struct{} // of one element: there is something to read, or there will be nothing more
	room  chan struct{} // of one element: something was taken, or nobody takes any more

	mu      sync.Mutex // guards what follows
	queue   [][]byte   // parts of arrays of the pool; the first is what is read next
	size    int        // bytes in queue
	err     error      // what Read answers when queue is empty; nil while more may come
	stopped bool       // nobody reads any more
}

func newInbox() *inbox {
	return &inbox{ready: make(chan struct{}, 1), room: make(chan struct{}, 1)}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// fill takes n bytes of r, or all when n is negative, and waits while the inbox
// is full. gone is asked now and again meanwhile, and its error ends the wait.
// An inbox that nobody reads any more throws the bytes away.
func (b *inbox) fill(r io.Reader, n int64, gone func() error) error {
	for n != 0 {
		if err := b.waitRoom(gone); err != nil {
			return err
		}
		chunk := chunks.Get().(*[chunkSize]byte)
		want := chunk[:]
		if n > 0 && n < chunkSize {
			want = chunk[:n]
		}
		got, err := r.Read(want)
		b.put(chunk, got)
		if n > 0 {
			n -= int64(got)
		}
		if err != nil && n != 0 {
			if err == io.EOF && n < 0 {
				return nil
			}
			return err
		}
	}
	return nil
}

func (b *inbox) waitRoom(gone func() error) error {
	for {
		b.mu.Lock()
		full := b.size >= inboxSize && !b.stopped
		b.mu.Unlock()
		if !full {
			return nil
		}
		timer := time.NewTimer(gonePoll)
		select {
		case <-b.room:
		case <-timer.C:
			if err := gone(); err != nil {
				return err
			}
		}
		timer.Stop()
	}
}

// put appends the first n bytes of chunk, which it owns from now on.
func (b *inbox) put(chunk *[chunkSize]byte, n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n == 0 || b.stopped || b.err != nil {
		chunks.Put(chunk)
		return
	}
	b.size += n
	// Keystrokes share an array.
	if last := len(b.queue) - 1; last >= 0 && cap(b.queue[last])-len(b.queue[last]) >= n {
		b.queue[last] = append(b.queue[last], chunk[:n]...)
		chunks.Put(chunk)
	} else {
		b.queue = append(b.queue, chunk[:n])
	}
	signal(b.ready)
}

// end says that nothing more comes, and why: io.EOF at a half-close. What has
// come before is still read. Only the first call counts.
func (b *inbox) end(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil {
		b.err = err
	}
	signal(b.ready)
}

// stop says that nobody reads any more. A Read that waits returns.
func (b *inbox) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stopped = true
	if b.err == nil {
		b.err = errEnded
	}
	b.queue, b.size = nil, 0
	signal(b.ready)
	signal(b.room)
}

// take returns what came first, or why there is nothing more.
func (b *inbox) take(most int) ([]byte, error) {
	for {
		b.mu.Lock()
		if len(b.queue) > 0 {
			first := b.queue[0]
			if len(first) > most {
				// Its end stays where it is, so put may go on to append to it.
				b.queue[0] = first[most:]
				first = first[:most:most]
			} else {
				b.queue = b.queue[1:]
			}
			b.size -= len(first)
			signal(b.room)
			b.mu.Unlock()
			return first, nil
		}
		err := b.err
		b.mu.Unlock()
		if err != nil {
			return nil, err
		}
		<-b.ready
	}
}

// Read implements io.Reader.
func (b *inbox) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	got, err := b.take(len(p))
	n := copy(p, got)
	recycle(got)
	return n, err
}

// WriteTo implements io.WriterTo, which io.Copy uses: it spares a copy.
func (b *inbox) WriteTo(w io.Writer) (total int64, err error) {
	for {
		got, err := b.take(chunkSize)
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		n, err := w.Write(got)
		total += int64(n)
		if err != nil {
			return total, err
		}
		recycle(got)
	}
}

// recycle gives an array back to the pool if this was all that it held.
func recycle(b []byte) {
	if cap(b) == chunkSize {
		chunks.Put((*[chunkSize]byte)(b[:chunkSize]))
	}
}
