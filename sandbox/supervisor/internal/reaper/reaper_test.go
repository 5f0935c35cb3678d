package reaper

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/gate"
)

func newReaper(t *testing.T) *Reaper {
	r, err := New(new(gate.Gate))
	if err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() { r.Run(stop); close(done) }()
	t.Cleanup(func() { close(stop); <-done })
	return r
}

func TestCodes(t *testing.T) {
	r := newReaper(t)
	for script, want := range map[string]int{"exit 0": 0, "exit 200": 200, "kill -9 $$": 137, "kill -TERM $$": 143} {
		_, done, err := r.Start("/bin/sh", []string{"sh", "-c", script}, &syscall.ProcAttr{})
		if err != nil {
			t.Fatal(err)
		}
		if e := <-done; e.Code() != want {
			t.Errorf("%s: %d", script, e.Code())
		}
	}
}

// Many at once that end at once: each exit arrives.
func TestNoneIsLost(t *testing.T) {
	r := newReaper(t)
	var all []<-chan Exit
	for range 50 {
		_, done, err := r.Start("/bin/true", []string{"true"}, &syscall.ProcAttr{})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, done)
	}
	for _, done := range all {
		<-done
	}
}

// An orphan becomes ours; its exit is told though it was before Notify.
func TestOrphan(t *testing.T) {
	r := newReaper(t)
	for _, pause := range []string{"0", "0.1"} {
		release := r.Hold()
		p := make([]int, 2)
		if err := syscall.Pipe(p); err != nil {
			t.Fatal(err)
		}
		_, done, err := r.Start("/bin/sh", []string{"sh", "-c", "(sleep " + pause + "; exit 7) & echo $!"},
			&syscall.ProcAttr{Files: []uintptr{0, uintptr(p[1]), 2}, Env: []string{"PATH=/bin:/usr/bin"}})
		if err != nil {
			t.Fatal(err)
		}
		<-done
		if pause == "0" {
			time.Sleep(50 * time.Millisecond)
		}
		buf := make([]byte, 32)
		n, _ := syscall.Read(p[0], buf)
		pid := 0
		for _, c := range strings.TrimSpace(string(buf[:n])) {
			pid = pid*10 + int(c-'0')
		}
		exits := make(chan Exit, 1)
		if !r.Notify(pid, func(e Exit) { exits <- e }) {
			t.Fatalf("process %d is not ours", pid)
		}
		if e := <-exits; e.Code() != 7 || e.PID != pid {
			t.Errorf("exit %+v", e)
		}
		release()
		_, _ = syscall.Close(p[0]), syscall.Close(p[1])
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.early)+len(r.waiting)+len(r.holds) != 0 {
		t.Errorf("left: %v %v %v", r.early, r.waiting, r.holds)
	}
}

// A process whose parent outlives the one that was started becomes ours when that parent ends.
func TestOrphanToBe(t *testing.T) {
	r := newReaper(t)
	defer r.Hold()()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	defer write.Close()
	_, done, err := r.Start("/bin/sh", []string{"sh", "-c", "(sh -c 'sleep 0.3; exit 9' & echo $!; sleep 0.2) &"},
		&syscall.ProcAttr{Files: []uintptr{0, write.Fd(), 2}, Env: []string{"PATH=/bin:/usr/bin"}})
	if err != nil {
		t.Fatal(err)
	}
	<-done
	var pid int
	if _, err := fmt.Fscan(read, &pid); err != nil {
		t.Fatal(err)
	}
	exits := make(chan Exit, 1)
	if !r.Notify(pid, func(e Exit) { exits <- e }) {
		t.Fatalf("process %d did not become ours", pid)
	}
	if e := <-exits; e.Code() != 9 {
		t.Errorf("exit %+v", e)
	}
}

func TestNotOurs(t *testing.T) {
	r := newReaper(t)
	if r.Notify(1, func(Exit) {}) {
		t.Error("process 1 is ours")
	}
}
