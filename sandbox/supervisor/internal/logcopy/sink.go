package logcopy

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// SinkBehind is how far a sink's reader may fall behind the container, its pipe not counted.
	SinkBehind = 8 << 20
	// sinkMemory bounds what all sinks of a budget keep for their readers.
	sinkMemory = 64 << 20
	// sinkPipe is as much as a copier reads at once. Not more: what pipes may
	// hold is counted by user, and root in a container is the user that we are.
	sinkPipe  = rawSize
	sinkChunk = 256 << 10
)

// ErrBehind ends a sink whose reader is too slow.
var ErrBehind = errors.New("client reads too slowly")

// Budget is the memory that several sinks share; its zero value is ready.
type Budget struct{ used atomic.Int64 }

// Sink is a pipe to somebody who wants to see what a container writes, as it
// is, besides the log. It never makes the copier wait: what the pipe does not
// take is kept, up to [SinkBehind], and given by a goroutine that lives as long
// as there is any; a reader who is behind by more has lost, and his pipe is closed.
type Sink struct {
	f      *os.File
	raw    syscall.RawConn
	budget *Budget
	over   chan struct{} // closed with the pipe

	flushing sync.WaitGroup

	mu     sync.Mutex
	kept   []chunk // what the pipe has not taken, in order
	behind int     // bytes, with those that the goroutine has in its hands
	busy   bool    // the goroutine lives
	last   bool    // nothing more comes
	closed bool
	err    error
}

// chunk is memory of its own, so that what is not needed any more is given back.
type chunk struct {
	mem []byte
	n   int
}

// NewSink makes a sink of a pipe's write end, which stays the caller's to close.
func NewSink(pipe *os.File, budget *Budget) (*Sink, error) {
	raw, err := pipe.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("attaching a pipe: %w", err)
	}
	fd := -1
	if cerr := raw.Control(func(old uintptr) {
		if fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 3); err != nil {
			return
		}
		if err = unix.SetNonblock(fd, true); err == nil {
			_, err = unix.FcntlInt(old, unix.F_GETPIPE_SZ, 0) // an error: it is no pipe, and might block all the same
		}
		_, _ = unix.FcntlInt(old, unix.F_SETPIPE_SZ, sinkPipe) // only faster
	}); cerr != nil {
		err = cerr
	}
	if err != nil {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		return nil, fmt.Errorf("attaching a pipe: %w", err)
	}
	s := &Sink{f: os.NewFile(uintptr(fd), "attached"), budget: budget, over: make(chan struct{})}
	if s.raw, err = s.f.SyscallConn(); err != nil {
		_ = s.f.Close()
		return nil, fmt.Errorf("attaching a pipe: %w", err)
	}
	return s, nil
}

// Over is closed when the pipe is: after all that came before [Sink.End], or
// when nobody reads it, or after [Sink.Close]. [Sink.Err] says then whether
// the reader was too slow.
func (s *Sink) Over() <-chan struct{} { return s.over }

// Err is ErrBehind, or nil.
func (s *Sink) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// End says that nothing more comes.
func (s *Sink) End() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = true
	if !s.busy {
		s.close(nil)
	}
}

// Close closes the pipe, whatever is under way, and waits for that.
func (s *Sink) Close() {
	s.mu.Lock()
	s.close(nil)
	s.mu.Unlock()
	s.flushing.Wait()
}

// close is Close without waiting; mu is held.
func (s *Sink) close(err error) {
	if s.closed {
		return
	}
	s.closed, s.err = true, err
	_ = s.f.Close() // frees a write that waits
	for _, c := range s.kept {
		s.free(c)
	}
	s.kept = nil
	close(s.over)
}

// put gives p to the reader, or keeps it for him.
func (s *Sink) put(p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.last {
		return
	}
	if !s.busy {
		n, err := 0, error(nil)
		_ = s.raw.Control(func(fd uintptr) { n, err = unix.Write(int(fd), p) })
		if err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			s.close(nil) // nobody reads it
			return
		}
		p = p[max(n, 0):]
	}
	if len(p) == 0 {
		return
	}
	if !s.keep(p) {
		s.close(ErrBehind)
		return
	}
	if !s.busy {
		s.busy = true
		s.flushing.Go(s.flush)
	}
}

// keep keeps p; mu is held.
func (s *Sink) keep(p []byte) bool {
	if s.behind+len(p) > SinkBehind {
		return false
	}
	s.behind += len(p)
	for len(p) > 0 {
		if n := len(s.kept); n == 0 || s.kept[n-1].n == sinkChunk {
			mem, err := s.allocate()
			if err != nil {
				return false
			}
			s.kept = append(s.kept, chunk{mem: mem})
		}
		tail := &s.kept[len(s.kept)-1]
		n := copy(tail.mem[tail.n:], p)
		tail.n += n
		p = p[n:]
	}
	return true
}

// flush gives the reader what is kept for him.
func (s *Sink) flush() {
	for {
		s.mu.Lock()
		if len(s.kept) == 0 {
			s.busy = false
			if s.last {
				s.close(nil)
			}
			s.mu.Unlock()
			return
		}
		c := s.kept[0]
		s.kept = slices.Delete(s.kept, 0, 1)
		s.mu.Unlock()

		_, err := s.f.Write(c.mem[:c.n])
		s.mu.Lock()
		s.behind -= c.n
		s.free(c)
		if err != nil {
			s.close(nil)
		}
		s.mu.Unlock()
	}
}

// allocate takes memory of the kernel, not of the heap, which would keep it.
func (s *Sink) allocate() ([]byte, error) {
	if s.budget.used.Add(sinkChunk) > sinkMemory {
		s.budget.used.Add(-sinkChunk)
		return nil, unix.ENOMEM
	}
	mem, err := unix.Mmap(-1, 0, sinkChunk, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		s.budget.used.Add(-sinkChunk)
	}
	return mem, err
}

func (s *Sink) free(c chunk) {
	_ = unix.Munmap(c.mem)
	s.budget.used.Add(-sinkChunk)
}

// sinks are those of one stream. While there is none, put costs one load.
type sinks struct {
	list atomic.Pointer[[]*Sink] // nil for none; replaced, never changed

	mu    sync.Mutex
	ended bool
}

func (l *sinks) put(p []byte) {
	if list := l.list.Load(); list != nil {
		for _, s := range *list {
			s.put(p)
		}
	}
}

// end is the stream's end.
func (l *sinks) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	if list := l.list.Swap(nil); list != nil {
		for _, s := range *list {
			s.End()
		}
	}
}

// set replaces the list by what change makes of it.
func (l *sinks) set(change func([]*Sink) []*Sink) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []*Sink
	if old := l.list.Load(); old != nil {
		list = slices.Clone(*old)
	}
	if list = change(list); len(list) == 0 {
		l.list.Store(nil)
	} else {
		l.list.Store(&list)
	}
}

// Attach lets s have all that is read from now on, and [Sink.End] at the stream's end.
func (c *Copier) Attach(s *Sink) {
	c.sinks.set(func(list []*Sink) []*Sink {
		if c.sinks.ended {
			s.End()
			return nil
		}
		return append(list, s)
	})
}

// Detach undoes Attach; the sink stays the caller's to end or close.
func (c *Copier) Detach(s *Sink) {
	c.sinks.set(func(list []*Sink) []*Sink {
		return slices.DeleteFunc(list, func(x *Sink) bool { return x == s })
	})
}
