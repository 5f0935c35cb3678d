package logcopy

import (
	"errors"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// hangTime is how long a write of the log may take. From then on the
// container's output is read and dropped until it is over. Not less: a
// disk that only is slow should slow the container, not lose its lines.
// A variable for the tests.
var hangTime = 2 * time.Second

// detour is where a stream's output goes while its log's write hangs.
type detour struct {
	timer *time.Timer // runs while a write does
	stop  atomic.Bool
	over  chan struct{} // gets one when the bypass has ended

	dropped int  // bytes, since the write that hung began; the bypass' while it runs
	last    byte // of them
}

// begin is called before a write.
func (d *detour) begin(bypass func()) {
	if d.timer == nil {
		d.timer = time.AfterFunc(hangTime, bypass)
		return
	}
	d.timer.Reset(hangTime)
}

// end is called after it, and returns when nobody else reads src.
func (d *detour) end(src *os.File) {
	if d.timer.Stop() {
		return
	}
	d.stop.Store(true)
	_ = src.SetReadDeadline(time.Unix(1, 0)) // wakes a bypass that waits
	<-d.over
	_ = src.SetReadDeadline(time.Time{})
	d.stop.Store(false)
}

// bypass reads and drops what the container writes, so that it never waits for
// a disk that hangs. Clients that are attached get it.
func (c *Copier) bypass() {
	d := &c.detour
	defer func() { d.over <- struct{}{} }()
	if c.raw == nil { // a leftover's
		return
	}
	buf, err := c.pool.getOut()
	if err != nil {
		c.log.Error("Log hangs, and there is no memory to read on", "container", c.id, "err", err)
		return
	}
	defer c.pool.putOut(buf)
	for !d.stop.Load() {
		n := 0
		err := c.raw.Read(func(fd uintptr) bool {
			n, err = unix.Read(int(fd), buf)
			return d.stop.Load() || !errors.Is(err, unix.EAGAIN)
		})
		if err != nil || n <= 0 { // woken, or the end of the stream, which is met again
			return
		}
		c.bytes.Add(uint64(n))
		c.sinks.put(buf[:n])
		c.file.drop(n, errHangs)
		d.dropped += n
		d.last = buf[n-1]
	}
}
