package supervisor_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/supervisor"
)

func itoa(n int) string { return strconv.Itoa(n) }

// The daemon goes, the container ends meanwhile, the daemon comes back.
func TestDaemonGoneAndBack(t *testing.T) {
	w := newWorld(t)
	req := w.container("sh", "-c", "usleep 100000; echo done; exit 42")
	before := time.Now()
	w.run(req)
	w.must(w.client.Close())
	if _, err := w.client.List(w.ctx()); err == nil {
		t.Error("a closed client still works")
	}
	w.eventually("the exit is on disk", func() bool {
		_, err := os.Stat(filepath.Join(w.dir, "supervisor/containers", req.ID, "exit.json"))
		return err == nil
	})
	after := time.Now()
	w.connect()
	for range 2 { // replayed to everyone who asks
		ctx, cancel := context.WithCancel(w.ctx())
		err := w.client.Watch(ctx, func(e supervisor.Exit) {
			if e.ID != req.ID || e.Code != 42 || e.At.Before(before) || e.At.After(after) || e.Reason != "" {
				t.Errorf("exit %+v", e)
			}
			cancel()
		})
		cancel()
		if err == nil {
			t.Error("Watch returned without an error")
		}
	}
	if got := texts(w.logged(req), "stdout"); !slices.Equal(got, []string{"done"}) {
		t.Errorf("log %q", got)
	}
}

// killSupervisor kills the supervisor by SIGKILL; the next call starts another.
func (w *world) killSupervisor() {
	w.Helper()
	w.endSupervisor(unix.SIGKILL)
}

func (w *world) endSupervisor(sig unix.Signal) {
	w.Helper()
	pid := w.supervisorPID()
	if pid == 0 {
		w.Fatal("no supervisor runs")
	}
	w.must(unix.Kill(pid, sig))
	w.eventually("it is dead", func() bool { s := state(pid); return s == 'X' || s == 'Z' })
	if _, err := w.client.List(w.ctx()); err != nil { // by a new one
		w.Fatal(err)
	}
}

// wantAdopted wants the exit code of a container that has outlived its
// supervisor; of a kernel that keeps none (before 6.15) the word that it is unknown.
func (w *world) wantAdopted(id string, code int) {
	w.Helper()
	e := w.exit(id)
	switch {
	case e.Code == code && e.Reason == "":
	case e.Code == 255 && e.Reason != "" && !w.keepsExitCodes():
		w.Logf("the kernel does not tell exit codes: %+v", e)
	default:
		w.Errorf("exit %+v, want %d", e, code)
	}
}

// keepsExitCodes is whether a pidfd tells the end of a process that has been waited for.
func (w *world) keepsExitCodes() bool {
	pidfd := -1
	cmd := exec.Command("true")
	cmd.SysProcAttr = &syscall.SysProcAttr{PidFD: &pidfd}
	w.must(cmd.Run())
	defer unix.Close(pidfd)
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	return unix.IoctlPidfdInfo(pidfd, &info) == nil && info.Mask&unix.PIDFD_INFO_EXIT != 0
}

// A supervisor killed again and again while a container writes as fast as it
// can: each line is in the log once, in order, whole.
func TestTakeoverLosesNoLine(t *testing.T) {
	w := newWorld(t)
	w.watch()
	const total = 600000
	// It lives on at the end, for its exit code.
	req := w.container("sh", "-c", `trap 'exit 6' TERM
		count() { i=0; while [ $i -lt 40 ]; do seq $((i*15000+1)) $((i*15000+15000)); usleep 10000; i=$((i+1)); done; }
		count & count >&2 & wait; while :; do usleep 10000; done`)
	w.run(req)
	written := func() int {
		data, err := os.ReadFile(filepath.Join(req.LogDir, req.LogPath))
		w.must(err)
		return bytes.Count(data, []byte{'\n'})
	}
	kills := 0
	for end := time.Now().Add(8 * time.Second); time.Now().Before(end) && written() < 2*total; kills++ {
		time.Sleep(time.Duration(kills%5) * time.Millisecond)
		w.killSupervisor()
	}
	w.eventually("all is written", func() bool { return written() >= 2*total })
	w.must(w.client.Kill(w.ctx(), req.ID, unix.SIGTERM, false))
	w.wantAdopted(req.ID, 6)
	t.Logf("killed %d times", kills)
	got := w.logged(req)
	for _, stream := range []string{"stdout", "stderr"} {
		checkSeq(t, stream, texts(got, stream), total)
	}
}

func checkSeq(t *testing.T, stream string, got []string, total int) {
	t.Helper()
	if len(got) != total {
		t.Errorf("%s: %d lines, want %d", stream, len(got), total)
	}
	for i, s := range got {
		if s != strconv.Itoa(i+1) {
			t.Errorf("%s: line %d is %q", stream, i+1, s)
			return
		}
	}
}

func TestTakeoverKeepsExitCodes(t *testing.T) {
	w := newWorld(t)
	w.watch()
	var reqs []supervisor.RunRequest
	for i := range 4 {
		req := w.container("sh", "-c", fmt.Sprintf("trap 'echo bye; exit %d' TERM; echo hello; while :; do usleep 20000; done", 10+i))
		reqs = append(reqs, req)
		w.run(req)
		w.eventually("it is up", func() bool { return len(w.logged(req)) > 0 })
	}
	w.killSupervisor()
	states, err := w.client.List(w.ctx())
	w.must(err)
	if len(states) != len(reqs) {
		t.Errorf("taken over: %+v", states)
	}
	for i, req := range reqs {
		if out, code, err := w.exec(w.ctx(), req.ID, "sh", "-c", "echo in; exit 3"); err != nil || code != 3 || out != "in\n" {
			t.Errorf("exec after it: %q, %d, %v", out, code, err)
		}
		w.must(w.client.Kill(w.ctx(), req.ID, unix.SIGTERM, false))
		w.wantAdopted(req.ID, 10+i)
		if got := texts(w.logged(req), "stdout"); !slices.Equal(got, []string{"hello", "bye"}) {
			t.Errorf("log %q", got)
		}
	}
}

// Ended while nobody watched: the code cannot be known, and that is said.
func TestExitWithoutSupervisor(t *testing.T) {
	w := newWorld(t)
	req := w.container("sleep", "1000")
	pid := w.run(req)
	first := w.supervisorPID()
	if first == 0 {
		t.Fatal("no supervisor runs")
	}
	w.must(unix.Kill(first, unix.SIGKILL))
	w.must(unix.Kill(pid, unix.SIGKILL))
	w.eventually("it is dead", func() bool { return state(pid) == 'X' })
	w.watch()
	if e := w.exit(req.ID); e.Code != 255 || e.Reason == "" || e.PID != pid {
		t.Errorf("exit %+v", e)
	}
}

// A Run, or an exec, that the supervisor's death cuts short leaves nothing.
func TestKilledInTheMiddle(t *testing.T) {
	w := newWorld(t)
	keep := w.container("sleep", "1000")
	w.run(keep)
	for i := range 8 {
		req := w.container("sleep", "1000")
		done := make(chan error, 2)
		go func() {
			_, err := w.client.Run(w.ctx(), req)
			done <- err
		}()
		ctx, cancel := context.WithCancel(w.ctx())
		go func() {
			_, _, err := w.exec(ctx, keep.ID, "sleep", "3000")
			done <- err
		}()
		time.Sleep(time.Duration(5*i) * time.Millisecond)
		w.killSupervisor()
		cancel() // it may have come too late for the first, and be served by the second
		<-done
		<-done
		w.delete(req.ID) // what a client does that does not know
	}
	w.eventually("only the first is left", func() bool {
		states, err := w.client.List(w.ctx())
		w.must(err)
		return len(states) == 1 && len(list(filepath.Join(w.dir, "supervisor/containers"))) == 1
	})
	w.eventually("no exec'd process is left", func() bool {
		for _, pid := range w.processes() {
			if cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); bytes.Contains(cmdline, []byte("3000")) {
				return false
			}
		}
		return true
	})
}

// A call starts another supervisor when the one that it started is killed, but not for ever: then its caller may ask again.
func TestKilledWhileItStarts(t *testing.T) {
	w := newWorld(t)
	req := w.container("sleep", "1000")
	pid := w.run(req)
	w.makeProgram("dying 7")
	w.restart()
	w.must(unix.Kill(w.supervisorPID(), unix.SIGKILL))
	w.eventually("no supervisor runs", func() bool { return w.supervisorPID() == 0 })
	if states, err := w.newer.List(w.ctx()); !errdefs.IsUnavailable(err) {
		t.Errorf("five are killed, one after the other: %v, %v", states, err)
	}
	if states, err := w.newer.List(w.ctx()); err != nil || len(states) != 1 || states[0].ID != req.ID || states[0].PID != pid {
		t.Errorf("after two more: %v, %v", states, err)
	}
}

// lateTimer is a context whose time has come, and whose timer has not seen it yet.
type lateTimer struct{ context.Context }

func (lateTimer) Deadline() (time.Time, bool) { return time.Now(), true }

// A call that its deadline has ended says so, and its caller's context too, by which the caller tells that from a failure.
func TestDeadlineBeforeItsTimer(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithTimeout(w.ctx(), 100*time.Millisecond)
	defer cancel()
	if _, err := w.client.List(lateTimer{ctx}); !errors.Is(err, context.DeadlineExceeded) || ctx.Err() == nil {
		t.Errorf("%v, while the context is at %v", err, ctx.Err())
	}
}

func TestDamagedRecordIsSetAside(t *testing.T) {
	w := newWorld(t)
	w.watch()
	good := w.container("sleep", "1000")
	w.run(good)
	bad := filepath.Join(w.dir, "supervisor/containers/bad")
	w.must(os.Mkdir(bad, 0o700))
	w.must(os.WriteFile(filepath.Join(bad, "container.json"), []byte("{"), 0o600))
	w.must(os.Mkdir(filepath.Join(w.dir, "supervisor/containers/half"), 0o700))
	w.must(os.WriteFile(filepath.Join(w.dir, "supervisor/staging/99"), []byte("x"), 0o600))
	w.killSupervisor()
	if got := list(filepath.Join(w.dir, "supervisor/containers")); !slices.Equal(got, []string{good.ID}) {
		t.Errorf("containers: %v", got)
	}
	if got := list(filepath.Join(w.dir, "supervisor/quarantine")); len(got) != 1 || !strings.HasPrefix(got[0], "bad.") {
		t.Errorf("quarantine: %v", got)
	}
	w.must(os.RemoveAll(filepath.Join(w.dir, "supervisor/quarantine")))
}

// A record that cannot be read now is not set aside, nor its container taken for
// dead: no supervisor starts, until it can.
func TestUnreadableRecordIsWaitedFor(t *testing.T) {
	w := newWorld(t)
	w.watch()
	req := w.container("sh", "-c", "trap 'exit 8' TERM; i=0; while :; do i=$((i+1)); echo $i; usleep 2000; done")
	pid := w.run(req)
	record := filepath.Join(w.dir, "supervisor/containers", req.ID, "container.json")
	w.must(os.Rename(record, record+".kept"))
	w.must(os.Symlink("/proc/self/mem", record)) // whose first byte cannot be read: EIO
	first := w.supervisorPID()
	w.must(unix.Kill(first, unix.SIGKILL))
	w.eventually("it is dead", func() bool { s := state(first); return s == 'X' || s == 'Z' })
	for range 3 {
		if got, err := w.client.List(w.ctx()); err == nil || !strings.Contains(err.Error(), "input/output error") {
			t.Errorf("listed %v, %v", got, err)
		}
	}
	if s := state(pid); s == 'X' || s == 'Z' {
		t.Fatal("the container is dead")
	}
	w.must(os.Rename(record+".kept", record))
	w.must(w.client.Kill(w.ctx(), req.ID, unix.SIGTERM, false))
	w.wantAdopted(req.ID, 8)
	lines := texts(w.logged(req), "stdout")
	checkSeq(t, "stdout", lines, len(lines))
}

// Supervisors that have too few descriptors for all that there is take nothing
// for ended or damaged; the first that has enough takes all over.
func TestTakeoverWithoutDescriptors(t *testing.T) {
	w := newWorld(t)
	var reqs []supervisor.RunRequest
	for i := range 3 {
		req := w.interactive(fmt.Sprintf("trap 'exit %d' TERM; i=0; while :; do i=$((i+1)); echo $i; usleep 5000; done", 10+i))
		req.StdinOnce = true
		reqs = append(reqs, req)
		w.run(req)
	}
	w.endWithout()
	refused := 0
	for n := 8; n < 50; n += 3 {
		w.makeProgram(fmt.Sprintf("short of descriptors %d", n))
		client, err := supervisor.Connect(w.ctx(), w.config())
		if err != nil {
			refused++
			continue
		}
		got, err := client.List(w.ctx())
		_ = client.Close()
		if err != nil || len(got) != len(reqs) || slices.ContainsFunc(got, func(s supervisor.State) bool { return s.Exit != nil }) {
			t.Errorf("with %d descriptors: %+v, %v", n, got, err)
		}
		w.endWithout()
	}
	t.Logf("%d had too few", refused)
	if refused < 3 {
		t.Errorf("with too few descriptors only %d were refused", refused)
	}
	if got := list(filepath.Join(w.dir, "supervisor/quarantine")); len(got) > 0 {
		t.Errorf("set aside: %v", got)
	}
	w.watch() // starts one that has enough
	for i, req := range reqs {
		w.must(w.client.Kill(w.ctx(), req.ID, unix.SIGTERM, false))
		w.wantAdopted(req.ID, 10+i)
		lines := texts(w.logged(req), "stdout")
		checkSeq(t, "stdout", lines, len(lines))
	}
}

// endWithout kills the supervisor, and no other is started.
func (w *world) endWithout() {
	w.Helper()
	pid := w.supervisorPID()
	w.must(unix.Kill(pid, unix.SIGKILL))
	w.eventually("it is dead", func() bool { s := state(pid); return s == 'X' || s == 'Z' })
}

func TestReopenLogUnderLoad(t *testing.T) {
	w := newWorld(t)
	w.watch()
	const total = 400000
	req := w.container("seq", "1", itoa(total))
	w.run(req)
	path := filepath.Join(req.LogDir, req.LogPath)
	var rotated []string
	for {
		w.mu.Lock()
		_, ended := w.exits[req.ID]
		w.mu.Unlock()
		if ended {
			break
		}
		old := fmt.Sprintf("%s.%d", path, len(rotated))
		w.must(os.Rename(path, old))
		w.must(w.client.ReopenLog(w.ctx(), req.ID))
		rotated = append(rotated, old)
		time.Sleep(2 * time.Millisecond)
	}
	var all []byte
	for _, f := range append(rotated, path) {
		data, err := os.ReadFile(f)
		w.must(err)
		all = append(all, data...)
	}
	t.Logf("%d rotations", len(rotated))
	checkSeq(t, "stdout", texts(w.parse(all), "stdout"), total)

	// A link in the way: an error, and nothing is made where it points.
	w.must(os.Rename(path, path+".last"))
	w.must(os.Symlink(filepath.Join(w.dir, "elsewhere"), path))
	if err := w.client.ReopenLog(w.ctx(), req.ID); err == nil {
		t.Error("a symbolic link was followed")
	}
	if _, err := os.Lstat(filepath.Join(w.dir, "elsewhere")); err == nil {
		t.Error("a file was made through a symbolic link")
	}
}

// Children outside the PID namespace's reach hold the output open after the end.
func TestBackgroundChildHoldsOutput(t *testing.T) {
	w := newWorld(t)
	w.watch()
	req := w.bundle(func(s *specs.Spec) {
		s.Linux.Namespaces = s.Linux.Namespaces[1:]
		s.Process.Args = []string{"sh", "-c", "sleep 1000 & echo x; exit 2"}
	})
	w.run(req)
	if e := w.exit(req.ID); e.Code != 2 {
		t.Errorf("exit %+v", e)
	}
	w.delete(req.ID)
}

func TestSupervisorEndsWhenIdle(t *testing.T) {
	w := newWorld(t)
	req := w.container("true")
	w.run(req)
	w.delete(req.ID)
	pid := w.supervisorPID()
	w.eventually("it ends by itself", func() bool { return state(pid) == 'X' })
	w.run(w.container("true")) // by a new one
	if p := w.supervisorPID(); p == 0 || p == pid {
		t.Errorf("process %d after %d", p, pid)
	}
}
