package logcopy

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// hotRead is a read so large that the pipe is worth enlarging, once.
	hotRead  = 48 << 10
	hotPipe  = 1 << 20
	noMemory = 100 * time.Millisecond // pause when no slot is to be had
)

// Copier copies one stream. It is started by [Start] and ends at the stream's
// end or by Stop.
type Copier struct {
	src    *os.File
	raw    syscall.RawConn
	id     string
	stream uint64
	file   *File
	pool   *Pool
	log    *slog.Logger

	left   *Leftover // until the copier adopts it
	slot   *slot
	head   head
	last   time.Time
	large  bool
	finite bool
	sinks  sinks

	detour detour

	bytes  atomic.Uint64
	parked atomic.Bool // all that has been read is in the log, and nothing was there when last looked
	done   chan struct{}
}

// Start copies src, a FIFO's read end or a terminal's master in non-blocking
// mode, to file. From then on src is the copier's. left, which may be nil, is
// what [Pool.Recover] has of this stream; it goes first. A finite stream ends
// when nothing is left to be read: a FIFO that is opened after its last writer
// has gone says nothing of its end.
func Start(src *os.File, key Key, file *File, pool *Pool, left *Leftover, finite bool, log *slog.Logger) (*Copier, error) {
	raw, err := src.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("copying %s of %s: %w", key.Stream, key.ID, err)
	}
	c := &Copier{src: src, raw: raw, id: key.ID, file: file, pool: pool, left: left, log: log, finite: finite, done: make(chan struct{})}
	c.detour.over = make(chan struct{}, 1)
	if key.Stream == streams[1] {
		c.stream = 1
	}
	file.Owe(left)
	go c.run()
	return c, nil
}

// Flush writes what [Pool.Recover] has of a stream that nobody writes to any
// more. It returns when that is done or, of a log that hangs, after hangTime.
func (l *Leftover) Flush(key Key, file *File, pool *Pool, log *slog.Logger) {
	c := &Copier{id: key.ID, file: file, pool: pool, left: l, log: log, stream: l.slot.h.stream & 1, done: make(chan struct{})}
	c.detour.over = make(chan struct{}, 1)
	file.Owe(l)
	go func() {
		defer close(c.done)
		pool.gate.Enter()
		defer pool.gate.Leave()
		c.adopt()
		c.flush(true)
		c.release()
	}()
	c.await()
}

// adopt takes what was left, of which the file may have a part.
func (c *Copier) adopt() {
	l := c.left
	if l == nil {
		return
	}
	c.left = nil
	c.detour.begin(c.bypass)
	c.file.lock()
	c.file.settle()
	c.file.unlock()
	c.detour.end(c.src)
	c.slot = l.slot
	if last := l.slot.h.last; last > 0 {
		c.last = time.Unix(0, last)
	}
}

// Src is the stream's descriptor, -1 when it has ended. It stays the copier's.
func (c *Copier) Src() int {
	src := -1
	_ = c.raw.Control(func(fd uintptr) { src = int(fd) })
	return src
}

// Number is 0 for stdout, 1 for stderr.
func (c *Copier) Number() int { return int(c.stream) }

// Finite says whether it was started so.
func (c *Copier) Finite() bool { return c.finite }

// Done is closed when the stream has ended and all of it is in the log.
func (c *Copier) Done() <-chan struct{} { return c.done }

// Bytes is how much has been read, so that a caller sees whether anything still comes.
func (c *Copier) Bytes() uint64 { return c.bytes.Load() }

// Idle says whether the stream is open, with nothing in it that is not in the
// log, save a line without an end.
func (c *Copier) Idle() bool {
	idle := false
	_ = c.raw.Control(func(fd uintptr) { // an error: it is at its end
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		idle = n == 0 && err == nil
	})
	return idle && c.parked.Load() // in this order: what was read before it was looked has unset parked
}

// Stop ends the copying, with what is still in the pipe unread, and waits for
// it, but no longer than hangTime: then it ends when the write of the log does
// that hangs.
func (c *Copier) Stop() {
	_ = c.src.Close()
	c.await()
}

func (c *Copier) await() {
	limit := time.NewTimer(hangTime)
	defer limit.Stop()
	select {
	case <-c.done:
	case <-limit.C:
	}
}

func (c *Copier) run() {
	defer close(c.done)
	defer c.sinks.end()
	gate := &c.pool.gate
	flush := func(end bool) {
		gate.Enter()
		defer gate.Leave()
		c.adopt()
		if c.flush(end); end {
			c.release()
			_ = c.src.Close() // in here, as what has an end is handed to nobody
		}
	}
	flush(false) // what it was started with
	for {
		var end bool
		err := c.raw.Read(func(fd uintptr) (ready bool) {
			gate.Enter()
			defer gate.Leave()
			ready, end = c.fill(int(fd))
			return ready
		})
		if err != nil || end {
			break
		}
		if c.slot == nil { // no memory or no descriptors; the container waits meanwhile
			time.Sleep(noMemory)
			continue
		}
		flush(false)
	}
	flush(true)
}

// fill reads what there is into the slot. It is not ready when that is
// nothing; then the stream parks, without a slot if it has no unfinished line.
func (c *Copier) fill(fd int) (ready, end bool) {
	// Only this process reads here, so that a read of what FIONREAD says is
	// there gets exactly that, which is what makes it recoverable.
	n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil {
		return true, true
	}
	c.parked.Store(false)
	if n == 0 {
		end := c.finite || ended(fd)
		if !end && c.slot != nil && !c.slot.needed() {
			c.release()
		}
		c.parked.Store(!end)
		return end, end
	}
	if c.slot == nil {
		if c.slot, err = c.pool.get(c.id, c.stream); err != nil {
			c.log.Warn("No buffer for a container's output, trying again", "container", c.id, "err", err)
			return true, false
		}
	}
	a, b := c.slot.room()
	n = min(n, rawSize-b)
	if err := c.slot.reserve(b + n); err != nil {
		c.log.Warn("No memory for a container's output, trying again", "container", c.id, "err", err)
		if time.Sleep(noMemory); !c.slot.needed() {
			c.release()
		}
		return true, false
	}
	c.slot.beginRead(a, b, n, &c.pool.sentinel)
	got, err := unix.Read(fd, c.slot.raw[b:b+n])
	c.slot.set(filled, a, b+max(got, 0))
	switch {
	case got > 0:
		c.bytes.Add(uint64(got))
		c.sinks.put(c.slot.raw[b : b+got])
		if got >= hotRead && !c.large {
			c.large = true
			_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, hotPipe) // a larger pipe is only faster
		}
		return true, false
	case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR): // somebody else read it
		return false, false
	}
	return true, true
}

// ended reports whether a stream without anything to read will stay so. It
// looks twice: the kernel looks for bytes first and for writers then, and the
// last one may have written and gone in between.
func ended(fd int) bool {
	first := hungUp(fd)
	return first && hungUp(fd)
}

// hungUp says whether poll(2) found no bytes, and no writer.
func hungUp(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	_, err := unix.Poll(p, 0)
	return err == nil && p[0].Revents&unix.POLLIN == 0 && p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
}

func (c *Copier) release() {
	if c.slot != nil {
		c.pool.put(c.slot)
		c.slot = nil
	}
}
