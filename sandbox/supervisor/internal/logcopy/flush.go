package logcopy

import (
	"bytes"
	"time"
)

// gap is what a stream's log has of lines that were not written whole. It
// is the slot's, so that a successor knows of it.
type gap struct {
	skip  bool // what comes up to the next newline belongs to a dropped line
	open  bool // the last of this stream in the log is the beginning of a line
	close bool // whose rest is dropped: an empty part is to end it
}

// bits are what a slot's word says of it.
func (g gap) bits() (b uint64) {
	for i, set := range [...]bool{g.skip, g.open, g.close} {
		if set {
			b |= 1 << i
		}
	}
	return b
}

func gapOf(bits uint64) gap { return gap{skip: bits&1 != 0, open: bits&2 != 0, close: bits&4 != 0} }

// lose notes that output is dropped that ends with last.
func (g *gap) lose(last byte) {
	g.skip = last != '\n'
	g.close = g.close || g.open
	g.open = false
}

// later is the time of the next lines: now, but not before the last one's,
// whatever the clock does. Without Round both would be compared by the monotonic
// clock, which does not see the other one being set back.
func later(last, now time.Time) time.Time {
	if now = now.Round(0); now.Before(last) {
		return last
	}
	return now
}

// flush writes the whole lines in the slot; with end the last beginning too.
func (c *Copier) flush(end bool) {
	if c.slot == nil {
		return
	}
	_, a, b := c.slot.get()
	if a == b {
		c.rejoin(a, b)
		return
	}
	now := time.Now()
	c.last = later(c.last, now)
	c.slot.h.last = c.last.UnixNano()
	err := c.file.refuses(now)
	var out []byte
	if err == nil {
		out, err = c.pool.getOut()
	}
	if err != nil {
		c.drop(a, b, err)
		c.rejoin(b, b)
		return
	}
	defer c.pool.putOut(out[:outSize])
	c.head.set(c.last, streams[c.stream])
	for a < b {
		if c.slot.gap.skip {
			a = c.skip(a, b)
			continue
		}
		out = out[:0]
		if c.slot.gap.close {
			out = append(append(out, c.head.full...), '\n')
		}
		lines, used := c.head.format(out, c.slot.raw[a:b], end)
		if used == 0 {
			break
		}
		c.write(lines, a, used, b)
		a += used
	}
	c.rejoin(a, b)
}

// rejoin has the stream go on after a write that hung, with raw[a:b] unwritten.
func (c *Copier) rejoin(a, b int) {
	if c.detour.dropped == 0 {
		return
	}
	if a < b { // the beginning of a line, which has lost its continuation
		c.drop(a, b, errHangs)
	}
	c.slot.gap.lose(c.detour.last)
	_, a, b = c.slot.get()
	c.slot.set(filled, a, b)
	c.detour.dropped = 0
}

// write writes lines, of raw[a:a+used], and notes in the slot that they are done.
func (c *Copier) write(lines []byte, a, used, b int) {
	c.detour.begin(c.bypass)
	kept, err := c.file.write(c.slot, lines, a, b)
	c.detour.end(c.src)
	partial := func(end int) bool { // whether lines[:end] end with a part of a line
		return lines[bytes.LastIndexByte(lines[:end-1], '\n')+1+len(c.head.full)-2] == 'P'
	}
	lost := c.head.payload(lines[kept:])
	if kept > 0 {
		c.slot.gap.close, c.slot.gap.open = false, partial(kept)
	} else if c.slot.gap.close {
		lost-- // the newline that ends a part is none of the output's
	}
	if kept < len(lines) {
		c.file.drop(lost, err)
		last := byte('\n')
		if partial(len(lines)) {
			last = 0
		}
		c.slot.gap.lose(last)
	}
	c.slot.set(filled, a+used, b)
}

// drop drops raw[a:b].
func (c *Copier) drop(a, b int, err error) {
	c.slot.gap.lose(c.slot.raw[b-1])
	c.file.drop(b-a, err)
	c.slot.set(filled, b, b)
}

// skip drops the rest of a line that was dropped, and returns where it ends.
func (c *Copier) skip(a, b int) int {
	n := bytes.IndexByte(c.slot.raw[a:b], '\n') + 1
	if c.slot.gap.skip = n == 0; c.slot.gap.skip {
		n = b - a
	}
	c.file.drop(n, nil)
	c.slot.set(filled, a+n, b)
	return a + n
}
