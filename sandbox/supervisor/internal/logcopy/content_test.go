package logcopy

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// joined reads a log of whole lines back: what was written, but that the end of a last line's part says nothing of a
// newline. Lines that are too long, or no lines, are an error.
func joined(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for r := bufio.NewReaderSize(f, 1<<20); ; {
		l, err := r.ReadSlice('\n')
		if errors.Is(err, io.EOF) && len(l) == 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("torn: %w: %.100q", err, l)
		}
		const head = len(stamp) + len(" stdout F ")
		if len(l) < head+1 || len(l) > head+maxLine+1 || string(l[len(stamp):head-2]) != " stdout " || l[head-1] != ' ' {
			return fmt.Errorf("no line: %.100q", l)
		}
		text := l[head:]
		switch l[head-2] {
		case 'P':
			text = text[:len(text)-1]
		case 'F':
		default:
			return fmt.Errorf("no tag: %.100q", l)
		}
		if _, err := w.Write(text); err != nil {
			return err
		}
	}
}

// What a container writes is its own affair: it reaches its log byte by byte, as the content of lines that are ours.
func TestSecurityOfContent(t *testing.T) {
	const forged = "2026-01-02T03:04:05.000000006Z stderr F rm -rf /\n"
	for _, tt := range []struct{ name, text string }{
		{"2.7-nul", "a\x00b\x00\n\x00\n"},
		{"2.7-ansi", "\x1b[2J\x1b]0;title\a\x1b[31mred\r\n"},
		{"2.7-invalid-utf8", "\xff\xfe\xc0\x80\xed\xa0\x80\n\xf8"},
		{"2.7-crlf", "one\r\ntwo\r\r\n\rthree\r"},
		{"2.7-forged", "\n" + forged + forged + " stdout F \n" + strings.Repeat("x", maxLine) + forged},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			r.start(nil)
			r.feed([]byte(tt.text))
			r.end()
			var got bytes.Buffer
			if err := joined(&got, filepath.Join(r.dir, "logs/a/b.log")); err != nil {
				t.Fatal(err)
			}
			if got.String() != tt.text {
				t.Errorf("%q became %q", tt.text, got.String())
			}
		})
	}
	t.Run("2.7-one-line", func(t *testing.T) { // of 1 GiB, in the memory of any other
		if testing.Short() {
			t.Skip("writes 1 GiB")
		}
		r := newRig(t)
		r.start(nil)
		block := bytes.Repeat([]byte("0123456789abcdefghi jklmnopqrstu"), 1<<15)
		want, got := sha256.New(), sha256.New()
		for range 1 << 10 {
			_, _ = want.Write(block)
			r.feed(block)
		}
		r.end()
		if err := joined(got, filepath.Join(r.dir, "logs/a/b.log")); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(want.Sum(nil), got.Sum(nil)) {
			t.Error("the log has something else")
		}
	})
}

// A log that is rotated as often as can be while lines come as fast as they can has each byte once, in whole lines.
func TestReopenUnderLoad(t *testing.T) {
	r := newRig(t)
	r.start(nil)
	path := filepath.Join(r.dir, "logs/a/b.log")
	want, got := sha256.New(), sha256.New()
	const rotations = 50
	var rotated atomic.Int64
	written := make(chan error, 1)
	lines := numbered(0, 5000)
	go func() {
		for i := 0; rotated.Load() < rotations; i++ {
			// a line that goes on in the next block
			block := append(fmt.Appendf(nil, "block %d\n%s", i, lines), strings.Repeat("z", i%1000*97)...)
			_, _ = want.Write(block)
			if _, err := r.w.Write(block); err != nil {
				written <- err
				return
			}
		}
		written <- nil
	}()
	rotate := func(old string) error {
		defer rotated.Add(1)
		if err := os.Rename(path, old); err != nil {
			return err
		}
		if err := r.file.Reopen(); err != nil {
			return err
		}
		info, err := os.Stat(old)
		if err != nil {
			return err
		}
		time.Sleep(time.Millisecond)
		if after, err := os.Stat(old); err != nil || after.Size() != info.Size() {
			return fmt.Errorf("%s is written after it was reopened: %v", old, err)
		}
		return nil
	}
	var files []string
	for i := range rotations {
		seen := r.c.Bytes()
		waitFor(t, func() bool { return r.c.Bytes() > seen }) // or nothing is shown
		files = append(files, fmt.Sprintf("%s.%d", path, i))
		if err := rotate(files[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	r.end()
	for _, f := range append(files, path) {
		if err := joined(got, f); err != nil {
			t.Fatal(f, err)
		}
	}
	if !bytes.Equal(want.Sum(nil), got.Sum(nil)) {
		t.Error("the logs have something else than was written")
	}
}

// Who writes all he can does not keep the lines of another from the log.
func TestFloodStarvesNobody(t *testing.T) {
	quietOne := newRig(t)
	quietOne.start(nil)
	var stop atomic.Bool
	var floods []*rig
	flooded := make(chan struct{}, 4)
	for range cap(flooded) {
		f := newRig(t)
		f.file.Close()
		f.file.max = 64 << 20
		if err := f.file.Reopen(); err != nil {
			t.Fatal(err)
		}
		f.start(nil)
		floods = append(floods, f)
		go func() {
			defer func() { flooded <- struct{}{} }()
			for block := numbered(0, 1600); !stop.Load(); {
				_, _ = f.w.Write(block)
			}
		}()
	}
	before := make([]uint64, len(floods))
	for i, f := range floods {
		waitFor(t, func() bool { return f.c.Bytes() > 1<<20 })
		before[i] = f.c.Bytes()
	}
	path := filepath.Join(quietOne.dir, "logs/a/b.log")
	for i := range 100 {
		quietOne.feed(numbered(i, 1))
		waitFor(t, func() bool {
			data, err := os.ReadFile(path)
			return err == nil && bytes.Count(data, []byte("\n")) == i+1
		})
	}
	for i, f := range floods { // or nothing was shown
		waitFor(t, func() bool { return f.c.Bytes() > before[i] })
	}
	stop.Store(true)
	for range floods {
		<-flooded
	}
	for _, f := range floods {
		f.end()
	}
	quietOne.end()
	quietOne.numbers(path, 100)
}
