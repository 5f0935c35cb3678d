package logcopy

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Of a line of which parts are in the log and others were dropped, readers see
// an end, which another copier writes if this one is killed.
func TestPartsThatAreDropped(t *testing.T) {
	t.Run("by one copier", func(t *testing.T) { partsThatAreDropped(t, func(*rig) {}) })
	t.Run("by a second one", func(t *testing.T) { partsThatAreDropped(t, (*rig).succeed) })
}

// succeed has a second copier go on, as another process does when the first is killed.
func (r *rig) succeed() {
	if !r.pool.Freeze(time.Minute) {
		r.Fatal("the copier does not stop")
	}
	first, thaw := r.c, r.pool.Thaw
	r.Cleanup(func() { thaw(); _ = r.w.Close(); <-first.Done() })
	src, err := unix.FcntlInt(uintptr(first.Src()), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		r.Fatal(err)
	}
	if r.pool, err = NewPool(filepath.Join(r.dir, "staging")); err != nil {
		r.Fatal(err)
	}
	r.Cleanup(r.pool.Close)
	left, errs, err := r.pool.Recover()
	if err != nil || len(errs) > 0 {
		r.Fatal(err, errs)
	}
	key := Key{"c", "stdout"}
	if r.c, err = Start(os.NewFile(uintptr(src), "r"), key, r.file, r.pool, left[key], false, quiet); err != nil {
		r.Fatal(err)
	}
}

func partsThatAreDropped(t *testing.T, then func(*rig)) {
	dir := t.TempDir()
	r := rigOn(t, dir, 20_000)
	path := filepath.Join(dir, "c.log")
	r.feed([]byte(strings.Repeat("x", 50_000)))
	waitFor(t, func() bool { return r.file.Lost() > 0 && r.c.Idle() })
	then(r)
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := r.file.Reopen(); err != nil {
		t.Fatal(err)
	}
	r.feed([]byte("rest of it\nnext\n"))
	r.end()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var tails []string
	for l := range strings.Lines(string(got)) {
		tails = append(tails, l[len(stamp):])
	}
	if want := " stdout F \n| stdout F next\n"; strings.Join(tails, "|") != want {
		t.Errorf("%q", tails)
	}
}

// What a hanging write has cost ends with the line in which it stops hanging,
// and not before: no line of the log begins in the middle, none that is whole is dropped.
func TestLinesAfterHanging(t *testing.T) {
	defer func(d time.Duration) { hangTime = d }(hangTime)
	hangTime = time.Millisecond
	tests := []struct{ name, written, dropped, after, log string }{
		{"nothing left, half a line dropped", "a\n", "b\nhal", "f\nc\n", "F a\nF c\n"},
		{"nothing left, whole lines dropped", "a\n", "b\n", "c\n", "F a\nF c\n"},
		{"a beginning left, its end dropped", "a\nhal", "f\nb\n", "c\n", "F a\nF c\n"},
		{"a beginning left, half a line dropped", "a\nhal", "f\nb\nhal", "f\nc\n", "F a\nF c\n"},
		{"a beginning left, its middle dropped", "a\nh", "al", "f\nc\n", "F a\nF c\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			r.file.lock() // as who writes and does not come back
			r.start(nil)
			r.feed([]byte(tt.written))
			waitFor(t, func() bool { return r.c.Bytes() == uint64(len(tt.written)) })
			r.feed([]byte(tt.dropped))
			waitFor(t, func() bool { return r.c.Bytes() == uint64(len(tt.written)+len(tt.dropped)) })
			r.file.unlock()
			waitFor(t, func() bool { return strings.Contains(r.log(), "a\n") && r.c.Idle() })
			r.feed([]byte(tt.after))
			r.end()
			if got := r.log(); got != tt.log {
				t.Errorf("the log has %q instead of %q", got, tt.log)
			}
			if lost, want := r.file.Lost(), len(tt.written+tt.dropped+tt.after)-len("a\nc\n"); lost != uint64(want) {
				t.Errorf("%d bytes are counted as lost, %d are", lost, want)
			}
		})
	}
}

// A clock that is set back does not let a stream's times go back.
func TestClockSetBack(t *testing.T) {
	now := time.Now()
	last := later(time.Time{}, now)
	if last != now.Round(0) { // with the monotonic clock's reading none would be compared with the next one by the calendar
		t.Errorf("%v, not %v without its monotonic reading", last, now)
	}
	ahead := last.Add(time.Hour)
	if got := later(ahead, now); got != ahead {
		t.Errorf("after %v came %v", ahead, got)
	}
}

// The end that a part of a line gets is not counted as output when it cannot be written.
func TestLostEndOfPart(t *testing.T) {
	r := newRig(t)
	r.start(nil)
	r.feed([]byte(strings.Repeat("x", maxLine+1)))
	waitFor(t, func() bool { return strings.HasPrefix(r.log(), "P xx") && r.c.Idle() })
	full, err := unix.Open("/dev/full", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	r.file.replace(output{fd: full})
	written := 1
	tries := make(map[time.Time]bool) // each sets the time of the next one
	waitFor(t, func() bool {
		r.feed([]byte("x\n"))
		written += 2
		r.file.mu.Lock()
		defer r.file.mu.Unlock()
		if !r.file.retry.IsZero() {
			tries[r.file.retry] = true
		}
		return len(tries) > 2
	})
	r.end()
	if lost := r.file.Lost(); lost != uint64(written) {
		t.Errorf("%d bytes are counted as lost, %d are", lost, written)
	}
}
