package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"time"
)

// writer is one container that writes lines.
type writer struct {
	id, share, log string
	container      container
	rotated        int // logs that have been renamed, to log.0 and so on
}

// rotate renames the log and has it reopened until the container has ended.
func (w *writer) rotate(ctx context.Context, ended <-chan struct{}) error {
	for {
		select {
		case <-ended:
			return nil
		case <-time.After(rotateEvery):
		}
		if err := os.Rename(w.log, fmt.Sprintf("%s.%d", w.log, w.rotated)); err != nil {
			return err
		}
		w.rotated++
		if err := w.container.reopen(ctx); err != nil {
			if _, serr := os.Stat(filepath.Join(w.share, w.id+".done")); serr == nil {
				return nil // it has ended
			}
			return err
		}
		for { // of conmon nobody tells that it has done it, or has ended instead
			if _, err := os.Stat(w.log); err == nil {
				break
			}
			select {
			case <-ended:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Millisecond):
			}
		}
	}
}

// done is what the writer says it has done.
type done struct {
	began, bytes int64
	sum          uint32
}

func (w *writer) done() (d done, err error) {
	text, err := os.ReadFile(filepath.Join(w.share, w.id+".done"))
	if err != nil {
		return d, err
	}
	_, err = fmt.Sscanf(string(text), "%d %d %x", &d.began, &d.bytes, &d.sum)
	return d, err
}

// check reads the logs, oldest first, and returns when the last was written last.
func (w *writer) check(d done) (last int64, parts int, err error) {
	c := check{table: crc32.MakeTable(crc32.Castagnoli)}
	for i := range w.rotated + 1 {
		path := fmt.Sprintf("%s.%d", w.log, i)
		if i == w.rotated {
			path = w.log
		}
		info, serr := os.Stat(path)
		if serr != nil {
			if i == w.rotated && w.rotated > 0 { // it had ended when it was to be reopened
				break
			}
			return last, c.parts, serr
		}
		last = max(last, info.ModTime().UnixNano())
		if err == nil {
			err = c.file(path)
		}
	}
	switch {
	case err != nil:
	case len(c.line) > 0:
		err = fmt.Errorf("the log ends with a part of a line: %.100q", c.line)
	case c.bytes != d.bytes:
		err = fmt.Errorf("the log has %d bytes of %d", c.bytes, d.bytes)
	case c.sum != d.sum:
		err = fmt.Errorf("the log's CRC is %08x and not %08x", c.sum, d.sum)
	}
	return last, c.parts, err
}

// check compares a log with what was written.
type check struct {
	bytes int64
	sum   uint32
	parts int
	table *crc32.Table
	line  []byte // the beginning of one, from parts
}

var mark = []byte(" stdout ")

func (c *check) file(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 1<<20)
	for n := 1; ; n++ {
		l, err := r.ReadSlice('\n')
		if errors.Is(err, io.EOF) && len(l) == 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s:%d: torn: %w: %.100q", path, n, err, l)
		}
		if err := c.one(l); err != nil {
			return fmt.Errorf("%s:%d: %w: %.100q", path, n, err, l)
		}
	}
}

// one takes a line: TIME stdout F TEXT, of which TEXT is what comes next.
func (c *check) one(l []byte) error {
	at := bytes.IndexByte(l, ' ')
	if at < 20 || at > 35 || l[4] != '-' || l[10] != 'T' || !bytes.HasPrefix(l[at:], mark) || len(l) < at+len(mark)+3 {
		return errors.New("not a line of a log")
	}
	tag, text := l[at+len(mark)], l[at+len(mark)+2:]
	switch {
	case l[at+len(mark)+1] != ' ' || tag != 'F' && tag != 'P':
		return errors.New("no tag")
	case tag == 'P':
		c.parts++
		c.line = append(c.line, text[:len(text)-1]...)
		return nil
	case len(c.line) > 0:
		c.line = append(c.line, text...)
		text = c.line
		c.line = c.line[:0]
	}
	const size = 80
	block, line := c.bytes/blockSize, c.bytes%blockSize/size
	if want := fmt.Appendf(nil, "%08d %04d ", block, line); len(text) != size || !bytes.HasPrefix(text[9:], want) {
		return fmt.Errorf("not line %d of block %d", line, block)
	}
	c.sum = crc32.Update(c.sum, c.table, text)
	c.bytes += size
	return nil
}
