package supervisor_test

import (
	"fmt"
	"path/filepath"
	"testing"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/supervisor"
)

// stops stops the supervisor; what it had begun to read it has read when it goes on or is killed.
func (w *world) stops() (pid int) {
	w.Helper()
	pid = w.supervisorPID()
	w.must(unix.Kill(pid, unix.SIGSTOP))
	w.eventually("the supervisor stands still", func() bool { return state(pid) == 'T' })
	return pid
}

// counting makes the bundle of a container that writes a line for each of 1 to n to both outputs when it gets SIGTERM, and then ends.
func (w *world) counting(n int) supervisor.RunRequest {
	return w.container("sh", "-c", fmt.Sprintf("trap 'seq 1 %d; seq 1 %d >&2; exit 3' TERM; echo up; while :; do usleep 10000; done", n, n))
}

// outputHeld is whether this process, the daemon, has a container's FIFOs open, once.
func (w *world) outputHeld(req supervisor.RunRequest) bool {
	return holds(w.output(req, "stdout")) == 1 && holds(w.output(req, "stderr")) == 1
}

// output is the path of one of a container's FIFOs.
func (w *world) output(req supervisor.RunRequest, name string) string {
	return filepath.Join(w.config().Dir, "containers", req.ID, name)
}

// wantNotHeld wants that nothing of a container's FIFOs is open here, whether they are deleted or not.
func (w *world) wantNotHeld(req supervisor.RunRequest) {
	w.Helper()
	for _, name := range []string{"stdout", "stderr", "stdout (deleted)", "stderr (deleted)"} {
		if n := holds(w.output(req, name)); n > 0 {
			w.Errorf("%d descriptors of %s are left", n, name)
		}
	}
}

// A container writes and ends while the supervisor stands still, which is then
// killed: nobody has read any of it, and all of it is in the log, once.
func TestOutputOfAnEndWithoutSupervisor(t *testing.T) {
	for name, test := range map[string]struct {
		lines, pipe int
		later       bool // the daemon that holds it has not started the container
	}{
		"lines":               {lines: 1000},
		"a pipe of 1 MiB":     {lines: 100_000, pipe: 1 << 20},
		"more than a pipe":    {lines: 100_000}, // it ends when the next supervisor reads
		"another daemon":      {lines: 1000, later: true},
		"another, with 1 MiB": {lines: 100_000, pipe: 1 << 20, later: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			req := w.counting(test.lines)
			pid := w.run(req)
			if !w.outputHeld(req) {
				t.Error("the daemon does not hold the output of a container that is started")
			}
			w.eventually("it is up", func() bool { return len(w.logged(req)) == 1 })
			if test.later {
				w.must(w.client.Close())
				w.wantNotHeld(req)
				w.connect()
				w.host()
			}
			w.watch()
			if test.pipe > 0 {
				w.enlarge(req, test.pipe)
			}
			for range 2 { // what is held is held for more than one
				w.killSupervisor()
			}
			w.eventually("the daemon holds the output", func() bool { return w.outputHeld(req) })
			supervisor := w.stops()
			w.must(unix.Kill(pid, unix.SIGTERM))
			if test.lines < 10_000 || test.pipe > 0 {
				w.eventually("the container has ended", func() bool { s := state(pid); return s == 'Z' || s == 'X' })
			} else {
				w.eventually("its output is full", func() bool { return w.unread(req) == 64<<10 })
			}
			w.must(unix.Kill(supervisor, unix.SIGKILL))
			if e := w.exit(req.ID); e.Code != 3 && (e.Code != 255 || e.Reason == "") {
				t.Errorf("exit %+v", e)
			}
			got := w.logged(req)
			stdout := texts(got, "stdout")
			if len(stdout) == 0 || stdout[0] != "up" {
				t.Fatalf("stdout %.100q", stdout)
			}
			checkSeq(t, "stdout", stdout[1:], test.lines)
			checkSeq(t, "stderr", texts(got, "stderr"), test.lines)
			w.eventually("the daemon holds it no more", func() bool { return holds(w.output(req, "stdout")) == 0 })
			w.wantNotHeld(req)
		})
	}
}

// fifo calls f with one of a container's outputs, open to be read.
func (w *world) fifo(req supervisor.RunRequest, name string, f func(fd int)) {
	w.Helper()
	fd, err := unix.Open(w.output(req, name), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	w.must(err)
	defer unix.Close(fd)
	f(fd)
}

func (w *world) enlarge(req supervisor.RunRequest, size int) {
	w.Helper()
	for _, name := range []string{"stdout", "stderr"} {
		w.fifo(req, name, func(fd int) {
			_, err := unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, size)
			w.must(err)
		})
	}
}

// unread is how much of stdout is in the FIFO.
func (w *world) unread(req supervisor.RunRequest) (n int) {
	w.Helper()
	w.fifo(req, "stdout", func(fd int) {
		var err error
		n, err = unix.IoctlGetInt(fd, unix.TIOCINQ)
		w.must(err)
	})
	return n
}

// With the daemon too goes what nobody has read: the kernel drops it. What there was before stays.
func TestOutputOfAnEndWithoutAnybody(t *testing.T) {
	w := newWorld(t)
	h := w.host()
	req := w.counting(1000)
	pid := w.run(req)
	w.eventually("it is up", func() bool { return len(w.logged(req)) == 1 })
	supervisor := w.stops()
	_ = h.Close()
	_ = w.client.Close()
	w.wantNotHeld(req)
	w.must(unix.Kill(pid, unix.SIGTERM))
	w.eventually("the container has ended", func() bool { s := state(pid); return s == 'Z' || s == 'X' })
	w.must(unix.Kill(supervisor, unix.SIGKILL))
	w.connect()
	w.watch()
	if e := w.exit(req.ID); e.Code != 3 && (e.Code != 255 || e.Reason == "") {
		t.Errorf("exit %+v", e)
	}
	if got := w.logged(req); len(got) != 1 || got[0].text != "up" {
		t.Errorf("log %.200q", got)
	}
}

// A daemon that comes later holds the output of what runs, and of nothing else;
// what is refused or ends, is deleted or has a terminal, leaves nothing open.
func TestOutputIsHeldWhileItMayCome(t *testing.T) {
	w := newWorld(t)
	w.watch()
	running, ended := w.container("sleep", "1000"), w.container("true")
	terminal := w.bundle(func(s *specs.Spec) { s.Process.Terminal = true })
	for _, req := range []supervisor.RunRequest{running, ended, terminal} {
		w.run(req)
	}
	w.exit(ended.ID)
	w.wantNotHeld(ended)
	w.wantNotHeld(terminal)
	if _, err := w.client.Run(w.ctx(), running); err == nil || !w.outputHeld(running) {
		t.Errorf("run again: %v; held %v", err, w.outputHeld(running))
	}
	bad := w.container("/nowhere")
	if _, err := w.client.Run(w.ctx(), bad); err == nil {
		t.Error("it has started")
	}
	w.wantNotHeld(bad)

	other := w.host()
	twice := func() bool { return holds(w.output(running, "stdout")) == 2 }
	w.eventually("both daemons hold the output", twice)
	w.wantNotHeld(ended)
	_ = other.Close()
	if !w.outputHeld(running) {
		t.Error("not held once")
	}
	for range 20 { // short ones, whose end may be told before their start
		req := w.container("true")
		w.run(req)
		w.exit(req.ID)
		w.wantNotHeld(req)
	}
	w.delete(running.ID)
	w.wantNotHeld(running)
}

// Near its limit of descriptors the daemon starts containers without holding their output.
func TestOutputIsNotHeldWithoutDescriptors(t *testing.T) {
	w := newWorld(t)
	var old unix.Rlimit
	w.must(unix.Getrlimit(unix.RLIMIT_NOFILE, &old))
	setLimit := func(limit unix.Rlimit) { // not by package syscall, which would give it to children of later tests too
		w.Helper()
		if _, _, errno := unix.RawSyscall6(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, uintptr(unsafe.Pointer(&limit)), 0, 0, 0); errno != 0 {
			w.Fatal(errno)
		}
	}
	// A quarter is kept; 10 besides are enough for the calls, and not for the output of more than 5 containers.
	setLimit(unix.Rlimit{Cur: uint64(len(list("/proc/self/fd"))+10) * 4 / 3, Max: old.Max})
	defer setLimit(old)
	held := 0
	for range 8 {
		req := w.container("sleep", "1000")
		w.run(req)
		if w.outputHeld(req) {
			held++
		} else {
			w.wantNotHeld(req)
		}
	}
	setLimit(old)
	if held == 0 || held > 5 {
		t.Errorf("the output of %d of 8 is held", held)
	}
}
