package logcopy

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// attached is a sink at the rig's copier, and what reads from it.
func (r *rig) attached(budget *Budget) (*Sink, *os.File) {
	r.Helper()
	in, out, err := os.Pipe()
	if err != nil {
		r.Fatal(err)
	}
	defer out.Close()
	s, err := NewSink(out, budget)
	if err != nil {
		r.Fatal(err)
	}
	r.c.Attach(s)
	r.Cleanup(func() {
		r.c.Detach(s)
		s.Close()
		_ = in.Close()
		if used := budget.used.Load(); used != 0 {
			r.Errorf("%d bytes of memory are left", used)
		}
	})
	return s, in
}

// lines are n bytes of lines of many lengths.
func lines(n int) []byte {
	var b bytes.Buffer
	for i := 0; b.Len() < n; i++ {
		b.WriteString(strings.Repeat("x", i%100) + "\n")
	}
	return b.Bytes()[:n]
}

// Readers who have fallen behind, by less than is allowed, get every byte, the
// last ones after the stream's end.
func TestSinksGetAll(t *testing.T) {
	r := newRig(t)
	r.start(nil)
	var budget Budget
	first, a := r.attached(&budget)
	_, b := r.attached(&budget)
	want := lines(SinkBehind - 1<<20)
	if _, err := r.w.Write(want); err != nil {
		t.Fatal(err)
	}
	r.end()
	for _, in := range []*os.File{a, b} {
		if got, err := io.ReadAll(in); err != nil || !bytes.Equal(got, want) {
			t.Errorf("got %d bytes of %d, %v", len(got), len(want), err)
		}
	}
	<-first.Over()
	if err := first.Err(); err != nil {
		t.Error(err)
	}
	if got := strings.Count(r.log(), "\n"); got != bytes.Count(want, []byte("\n"))+1 {
		t.Errorf("%d lines in the log", got)
	}
}

// A reader who reads nothing loses his pipe; the log, and another reader, nothing.
func TestSinkThatIsNotRead(t *testing.T) {
	r := newRig(t)
	r.start(nil)
	var budget Budget
	slow, in := r.attached(&budget)
	_, other := r.attached(&budget)
	want := lines(2 * SinkBehind)
	got := make([]byte, 1<<20)
	for rest := want; len(rest) > 0; rest = rest[len(got):] {
		if _, err := r.w.Write(rest[:len(got)]); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(other, got); err != nil || !bytes.Equal(got, rest[:len(got)]) {
			t.Fatal("the other got something else", err)
		}
	}
	<-slow.Over()
	if err := slow.Err(); !errors.Is(err, ErrBehind) {
		t.Error(err)
	}
	r.end()
	if data, err := io.ReadAll(in); err != nil || !bytes.HasPrefix(want, data) { // what was in the pipe, and its end
		t.Error(len(data), err)
	}
	if got := strings.Count(r.log(), "\n"); got != bytes.Count(want, []byte("\n"))+1 {
		t.Errorf("%d lines in the log", got)
	}
}

// All sinks together keep no more than their budget.
func TestSinksShareMemory(t *testing.T) {
	r := newRig(t)
	r.start(nil)
	var budget Budget
	var all []*Sink
	for range sinkMemory/SinkBehind + 4 {
		s, _ := r.attached(&budget)
		all = append(all, s)
	}
	for part := lines(1 << 20); len(all) > 0; {
		if _, err := r.w.Write(part); err != nil {
			t.Fatal(err)
		}
		if used := budget.used.Load(); used > sinkMemory {
			t.Fatalf("%d bytes are kept", used)
		}
		if s := all[0]; s.Err() != nil {
			all = all[1:]
		}
	}
	r.end()
}

// A reader who goes takes the sink with him; the end of a stream that has
// ended comes at once; what is no pipe is refused.
func TestSinkEnds(t *testing.T) {
	r := newRig(t)
	r.start(nil)
	var budget Budget
	s, in := r.attached(&budget)
	_ = in.Close()
	for gone := false; !gone; {
		_, _ = r.w.WriteString("line\n")
		select {
		case <-s.Over():
			gone = true
		default:
		}
	}
	if err := s.Err(); err != nil {
		t.Error(err)
	}
	r.end()
	s, in = r.attached(&budget)
	<-s.Over()
	if data, err := io.ReadAll(in); err != nil || len(data) > 0 {
		t.Errorf("%q, %v", data, err)
	}

	file, err := os.OpenFile(t.TempDir(), unix.O_TMPFILE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := NewSink(file, &budget); err == nil {
		t.Error("a file is taken for a pipe")
	}
}
