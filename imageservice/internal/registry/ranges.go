package registry

import (
	"context"
	"errors"
	"io"
	"sync"
)

const (
	// partSize is of one range; on a line of 100 ms there and back and 10 MB/s
	// the request for the next one costs a fifth.
	partSize = 4 << 20
	// minRanged is the smallest blob that is fetched in ranges.
	minRanged = 32 << 20
)

// errNoRanges is an answer with the whole blob where a part was asked for.
var errNoRanges = errors.New("host does not answer with a range")

var partBuffers = sync.Pool{New: func() any { return new([partSize]byte) }}

// part is one range, whole, or why it is not.
type part struct {
	buf *[partSize]byte
	n   int
	err error
}

// ranged is a blob fetched in parts by several workers at a time. It holds
// one part for each worker and one that is being read. A host that answers
// with the whole is read as a single stream.
type ranged struct {
	base    *stream // makes the first request; all others live in its context
	single  *stream // reads the rest of the blob, if not nil
	workers int
	ctx     context.Context // of the workers
	cancel  context.CancelFunc
	wait    sync.WaitGroup
	free    chan struct{} // one for each buffer that may be taken
	ring    []chan part   // part i comes through i modulo the length

	mu   sync.Mutex
	next int64 // the part to be fetched next

	index int64 // of the part to be read next
	now   part
	rest  []byte // of now
	off   int64  // delivered
}

func newRanged(s *stream, workers int) *ranged {
	r := &ranged{base: s, workers: workers}
	r.ctx, r.cancel = context.WithCancel(s.ctx)
	s.ranged, s.end = true, partSize
	return r
}

func (r *ranged) Read(p []byte) (int, error) {
	if r.ring == nil && r.single == nil {
		if err := r.begin(); err != nil {
			return 0, err
		}
	}
	if r.single == nil && len(r.rest) == 0 {
		if r.off == r.base.desc.Size {
			return 0, io.EOF
		}
		if err := r.advance(); errors.Is(err, errNoRanges) {
			r.fallBack()
		} else if err != nil {
			return 0, err
		}
	}
	if r.single != nil {
		return r.single.Read(p)
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	r.off += int64(n)
	return n, nil
}

// begin asks for the first part. The answer says what the host can do.
func (r *ranged) begin() error {
	for r.base.body == nil {
		err := r.base.open()
		if err != nil && r.ctx.Err() == nil {
			err = r.base.next(err)
		}
		if r.ctx.Err() != nil {
			err = context.Cause(r.ctx)
		}
		if err != nil {
			return err
		}
	}
	if r.base.end == r.base.desc.Size {
		r.base.ranged = false
		r.single = r.base
		return nil
	}
	r.ring = make([]chan part, r.workers+1)
	r.free = make(chan struct{}, r.workers+1)
	for i := range r.ring {
		r.ring[i] = make(chan part, 1)
		r.free <- struct{}{}
	}
	<-r.free
	r.next = 1
	for i := range r.workers {
		r.wait.Go(func() { r.work(i == 0) })
	}
	return nil
}

// work fetches one part after another, the first from the transfer that has
// begun. A buffer is taken before the number of a part, so that the part that
// is read next always has one.
func (r *ranged) work(first bool) {
	var index int64
	for s := r.base; ; first = false {
		if !first {
			select {
			case <-r.free:
			case <-r.ctx.Done():
				return
			}
			r.mu.Lock()
			index = r.next
			r.next++
			r.mu.Unlock()
			off := index * partSize
			if off >= r.base.desc.Size {
				return
			}
			s = newStream(r.ctx, r.base.repo, r.base.desc, r.base.route, off, min(off+partSize, r.base.desc.Size))
			s.ranged = true
		}
		got := part{buf: partBuffers.Get().(*[partSize]byte)}
		got.n, got.err = io.ReadFull(s, got.buf[:s.end-s.off])
		s.closeBody()
		if s != r.base {
			s.cancel()
		}
		r.ring[index%int64(len(r.ring))] <- got // never waits: it has a buffer
		if got.err != nil {
			return
		}
	}
}

// advance goes on to the next part.
func (r *ranged) advance() error {
	if r.now.buf != nil {
		r.recycle(r.now)
		r.now = part{}
		r.free <- struct{}{}
	}
	select {
	case r.now = <-r.ring[r.index%int64(len(r.ring))]:
	case <-r.ctx.Done():
		return context.Cause(r.ctx)
	}
	r.index++
	r.rest = r.now.buf[:r.now.n]
	if r.now.err != nil {
		r.rest = nil
	}
	return r.now.err
}

func (r *ranged) recycle(p part) {
	if p.buf != nil {
		partBuffers.Put(p.buf)
	}
}

// end stops the workers and gives all buffers back.
func (r *ranged) end() {
	r.cancel()
	r.wait.Wait()
	for _, c := range r.ring {
		select {
		case p := <-c:
			r.recycle(p)
		default:
		}
	}
	r.recycle(r.now)
	r.now, r.rest = part{}, nil
}

// fallBack goes on in a single stream: the host that is left has no ranges.
func (r *ranged) fallBack() {
	r.end()
	r.single = newStream(r.base.ctx, r.base.repo, r.base.desc, r.base.route, r.off, r.base.desc.Size)
}

// Close ends the transfer and waits for its workers.
func (r *ranged) Close() error {
	r.end()
	if r.single != nil {
		r.single.Close()
	}
	return r.base.Close()
}
