package logcopy

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

type rig struct {
	testing.TB
	dir  string
	pool *Pool
	file *File
	w    *os.File
	c    *Copier
}

func newRig(t testing.TB) *rig {
	r := &rig{TB: t, dir: t.TempDir()}
	var err error
	if r.pool, err = NewPool(filepath.Join(r.dir, "staging")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.pool.Close)
	if r.file, err = OpenFile(filepath.Join(r.dir, "logs"), "a/b.log", 0, quiet); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.file.Close)
	return r
}

func (r *rig) start(left *Leftover) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		r.Fatal(err)
	}
	for _, fd := range p { // the writer's too, so that a write can have a deadline
		if err := unix.SetNonblock(fd, true); err != nil {
			r.Fatal(err)
		}
	}
	r.w = os.NewFile(uintptr(p[1]), "w")
	var err error
	if r.c, err = Start(os.NewFile(uintptr(p[0]), "r"), Key{"c", "stdout"}, r.file, r.pool, left, false, quiet); err != nil {
		r.Fatal(err)
	}
}

func (r *rig) end() {
	_ = r.w.Close()
	<-r.c.Done()
}

func (r *rig) log() string {
	data, err := os.ReadFile(filepath.Join(r.dir, "logs/a/b.log"))
	if err != nil {
		r.Fatal(err)
	}
	var b strings.Builder
	for l := range strings.Lines(string(data)) {
		b.WriteString(l[len(stamp)+len(" stdout "):])
	}
	return b.String()
}

func TestCopy(t *testing.T) {
	r := newRig(t)
	r.start(nil)
	_, _ = r.w.WriteString("one\ntwo\nthr")
	time.Sleep(20 * time.Millisecond)
	_, _ = r.w.WriteString("ee\nfour")
	r.end()
	if got := r.log(); got != "F one\nF two\nF three\nP four\n" {
		t.Errorf("log %q", got)
	}
}

// A stream with nothing to read is not idle before what was read of it is in the log.
func TestIdle(t *testing.T) {
	r := newRig(t)
	r.start(nil)
	waitFor(t, func() bool { return r.c.Idle() })
	r.file.mu.Lock() // holds the copier up between reading and writing
	_, _ = r.w.WriteString("one\ntwo")
	if r.c.Idle() {
		t.Error("idle with bytes in the pipe")
	}
	waitFor(t, func() bool { return r.c.Bytes() == 7 })
	if r.c.Idle() {
		t.Error("idle before the log is written")
	}
	r.file.mu.Unlock()
	waitFor(t, func() bool { return r.c.Idle() })
	if got := r.log(); got != "F one\n" {
		t.Errorf("log %q", got)
	}
	r.end()
	if r.c.Idle() {
		t.Error("idle at its end")
	}
}

// A parked stream has no slot, save for an unfinished line; unused ones go too.
func TestParkedHoldsNothing(t *testing.T) {
	r := newRig(t)
	slots := func() int {
		entries, _ := os.ReadDir(filepath.Join(r.dir, "staging"))
		return len(entries)
	}
	r.start(nil)
	_, _ = r.w.WriteString("one\n")
	waitFor(t, func() bool {
		r.pool.mu.Lock()
		defer r.pool.mu.Unlock()
		return len(r.pool.slots) == 1 && len(r.pool.outs) == 1
	})
	r.pool.drop()
	if n := slots(); n != 0 {
		t.Errorf("%d slots", n)
	}
	_, _ = r.w.WriteString("tw")
	waitFor(t, func() bool { return r.c.Bytes() == 6 })
	if n := slots(); n != 1 {
		t.Errorf("%d slots with an unfinished line", n)
	}
	r.end()
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited in vain")
		}
	}
}

// A slot as SIGKILL leaves it at each point of its cycle is finished by the next process.
func TestRecover(t *testing.T) {
	const before, unfinished, data = "before\n", "unfin", "ished\nnext\nhalf"
	tests := []struct {
		name  string
		leave func(r *rig, s *slot)
		want  string
	}{
		{"filled", func(r *rig, s *slot) {
			copy(s.raw, unfinished+data)
			s.set(filled, 0, len(unfinished+data))
		}, "F before\nF unfinished\nF next\nP half\n"},
		{"reading, not read", func(r *rig, s *slot) {
			copy(s.raw, unfinished)
			s.set(filled, 0, len(unfinished))
			s.beginRead(0, len(unfinished), len(data), &r.pool.sentinel)
		}, "F before\nP unfin\n"},
		{"reading, read", func(r *rig, s *slot) {
			copy(s.raw, unfinished)
			s.set(filled, 0, len(unfinished))
			s.beginRead(0, len(unfinished), len(data), &r.pool.sentinel)
			copy(s.raw[len(unfinished):], data)
		}, "F before\nF unfinished\nF next\nP half\n"},
		{"one byte read", func(r *rig, s *slot) {
			s.beginRead(0, 0, 1, &r.pool.sentinel)
			s.raw[0] = '\n'
		}, "F before\nF \n"},
		{"writing, torn", func(r *rig, s *slot) {
			copy(s.raw, unfinished+data)
			s.h.dev, s.h.ino = r.file.out.dev, r.file.out.ino
			var st unix.Stat_t
			_ = unix.Fstat(r.file.out.fd, &st)
			s.h.size = st.Size
			s.set(writing, 0, len(unfinished+data))
			_, _ = unix.Write(r.file.out.fd, []byte(stamp+" stdout F unfini"))
		}, "F before\nF unfinished\nF next\nP half\n"},
		{"writing, written", func(r *rig, s *slot) {
			copy(s.raw, "x\n")
			s.h.dev, s.h.ino = r.file.out.dev, r.file.out.ino
			var st unix.Stat_t
			_ = unix.Fstat(r.file.out.fd, &st)
			s.h.size = st.Size
			s.set(writing, 0, 2)
			_, _ = unix.Write(r.file.out.fd, []byte(stamp+" stdout F x\n"))
		}, "F before\nF x\n"},
		{"nothing pending", func(r *rig, s *slot) { s.set(filled, 7, 7) }, "F before\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			r.start(nil)
			_, _ = r.w.WriteString(before)
			r.end()
			s, err := r.pool.get("c", 0)
			if err != nil {
				t.Fatal(err)
			}
			tt.leave(r, s)
			// as another process would see it
			_ = unix.Munmap(s.mem)
			next, err := NewPool(filepath.Join(r.dir, "staging"))
			if err != nil {
				t.Fatal(err)
			}
			r.pool = next
			left, errs, err := next.Recover()
			if err != nil || len(errs) > 0 || len(left) != 1 {
				t.Fatal(left, errs)
			}
			r.start(left[Key{"c", "stdout"}])
			r.end()
			if got := r.log(); got != tt.want {
				t.Errorf("log %q, want %q", got, tt.want)
			}
		})
	}
}

// The log was renamed, for a rotation, and not yet reopened: the torn line is
// cut off there, and the output goes on in a new file.
func TestRecoverRotated(t *testing.T) {
	r := newRig(t)
	s, err := r.pool.get("c", 0)
	if err != nil {
		t.Fatal(err)
	}
	copy(s.raw, "x\n")
	s.h.dev, s.h.ino = r.file.out.dev, r.file.out.ino
	s.set(writing, 0, 2)
	path := filepath.Join(r.dir, "logs/a/b.log")
	_, _ = unix.Write(r.file.out.fd, []byte("torn"))
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := r.file.Reopen(); err != nil {
		t.Fatal(err)
	}
	left, _, _ := r.pool.Recover()
	r.start(left[Key{"c", "stdout"}])
	r.end()
	if info, err := os.Stat(path + ".1"); err != nil || info.Size() != 0 {
		t.Errorf("the rotated log: %v, %v", info.Size(), err)
	}
	if got := r.log(); got != "F x\n" {
		t.Errorf("log %q", got)
	}
}

// What the write of one stream has torn is cut off before the other stream writes, which would be cut off with it.
func TestRecoverOtherStream(t *testing.T) {
	r := newRig(t)
	s, err := r.pool.get("c", 1)
	if err != nil {
		t.Fatal(err)
	}
	copy(s.raw, "x\n")
	s.h.dev, s.h.ino = r.file.out.dev, r.file.out.ino
	s.set(writing, 0, 2)
	_, _ = unix.Write(r.file.out.fd, []byte("torn"))
	found, _, _ := r.pool.Recover()
	left := found[Key{"c", "stderr"}]
	r.file.Owe(left)
	r.start(nil)
	_, _ = r.w.WriteString("out\n")
	r.end()
	if state, _, _ := left.slot.get(); state != filled {
		t.Error("the next supervisor would cut off what was written since")
	}
	left.Flush(Key{"c", "stderr"}, r.file, r.pool, slog.New(slog.DiscardHandler))
	if got := r.log(); got != "F out\nF x\n" {
		t.Errorf("log %q", got)
	}
}

func TestRecoverDamaged(t *testing.T) {
	r := newRig(t)
	dir := filepath.Join(r.dir, "staging")
	for name, size := range map[string]int{"1": 0, "2": pageSize + rawSize, "3": 100, "x": 5} {
		if err := os.WriteFile(filepath.Join(dir, name), bytes.Repeat([]byte{0xee}, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	left, errs, err := r.pool.Recover()
	if entries, _ := os.ReadDir(dir); err != nil || len(left) != 0 || len(errs) != 4 || len(entries) != 0 {
		t.Errorf("%v, %v, %d files", left, errs, len(entries))
	}
}

// /dev/full answers each write as a full disk does.
func TestFullDisk(t *testing.T) {
	r := newRig(t)
	full, err := unix.Open("/dev/full", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skip("needs /dev/full:", err)
	}
	good := r.file.out.fd
	r.file.out.fd = full
	r.start(nil)
	data := strings.Repeat("lost\n", 100000)
	_, _ = r.w.WriteString(data) // must not block
	waitFor(t, func() bool { return r.file.Lost() == uint64(len(data)) })
	r.file.mu.Lock()
	r.file.out.fd, r.file.retry = good, time.Time{}
	r.file.mu.Unlock()
	_, _ = r.w.WriteString("kept\n")
	r.end()
	_ = unix.Close(full)
	if got := r.log(); got != "F kept\n" {
		t.Errorf("log %q", got)
	}
}

func TestOpenFileRefuses(t *testing.T) {
	dir := t.TempDir()
	for _, err := range []error{
		os.Symlink("/tmp", filepath.Join(dir, "link")),
		os.Symlink(filepath.Join(dir, "target"), filepath.Join(dir, "l.log")),
		unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600),
		os.Mkdir(filepath.Join(dir, "d"), 0o700),
		os.Symlink(dir, filepath.Join(dir, "dirlink")),
		os.WriteFile(filepath.Join(dir, "of-the-host"), nil, 0o600),
		os.Link(filepath.Join(dir, "of-the-host"), filepath.Join(dir, "hard.log")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{"../x", "/x", "link/x", "l.log", "fifo", "hard.log", "d", "a/../b", ".", "a//b"} {
		if f, err := OpenFile(dir, path, 0, quiet); err == nil {
			f.Close()
			t.Errorf("%s was opened", path)
		}
	}
	if f, err := OpenFile(filepath.Join(dir, "dirlink"), "x", 0, quiet); err == nil {
		f.Close()
		t.Error("a directory that is a link was opened")
	}
	if _, err := os.Lstat(filepath.Join(dir, "target")); err == nil {
		t.Error("a file was made through a link")
	}
	f, err := OpenFile(dir, "new/sub/0.log", 0, quiet)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if info, _ := os.Stat(filepath.Join(dir, "new/sub/0.log")); info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v", info.Mode())
	}
}

func TestNoGoroutineLeft(t *testing.T) {
	n := runtime.NumGoroutine()
	r := newRig(t)
	for range 100 {
		r.start(nil)
		_, _ = r.w.WriteString("x")
		r.c.Stop()
		_ = r.w.Close()
	}
	waitFor(t, func() bool { return runtime.NumGoroutine() <= n+1 }) // the pool's timer may run
}

// BenchmarkCopy is a pipe of 80-byte lines, written in blocks, to a log file.
func BenchmarkCopy(b *testing.B) {
	for _, block := range []int{4 << 10, 64 << 10} {
		b.Run(fmt.Sprintf("%dKiB", block>>10), func(b *testing.B) {
			r := newRig(b)
			r.start(nil)
			data := bytes.Repeat([]byte(strings.Repeat("x", 79)+"\n"), block/80)
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				if _, err := r.w.Write(data); err != nil {
					b.Fatal(err)
				}
				if n += len(data); n > 512<<20 { // the disk is not what is measured
					n = 0
					r.file.mu.Lock()
					_ = unix.Ftruncate(r.file.out.fd, 0)
					r.file.mu.Unlock()
				}
			}
			r.end()
		})
	}
}
