package supervisor_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/supervisor"
)

// variantMark is before the name of a variant at the end of a program's file.
const variantMark = "\n#variant:"

// ownVariant is the name of the variant that this program is, "" for none.
func ownVariant() string {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		return ""
	}
	defer f.Close()
	end := make([]byte, 64)
	if _, err := f.Seek(-int64(len(end)), io.SeekEnd); err != nil {
		return ""
	}
	n, _ := io.ReadFull(f, end)
	_, name, _ := strings.Cut(string(end[:n]), variantMark)
	return name
}

// install makes a variant of the supervisor that is the installed one from now
// on, and a client as a daemon that has just been started.
func (w *world) install(variant string) {
	w.Helper()
	w.makeProgram(variant)
	w.restart()
}

// makeProgram makes the variant that is the installed one from now on.
func (w *world) makeProgram(variant string) {
	w.Helper()
	self, err := os.Executable()
	w.must(err)
	from, err := os.Open(self)
	w.must(err)
	defer from.Close()
	w.binary = filepath.Join(w.dir, "program-"+strings.ReplaceAll(variant, " ", "-"))
	to, err := os.OpenFile(w.binary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o700)
	w.must(err)
	_, err = io.Copy(to, from)
	w.must(err)
	_, err = to.WriteString(variantMark + variant)
	w.must(err)
	w.must(to.Close())
}

// restart makes a client as a daemon that is started with the installed program.
func (w *world) restart() {
	w.Helper()
	if w.newer != nil {
		_ = w.newer.Close()
	}
	var err error
	w.newer, err = supervisor.Connect(w.ctx(), w.config())
	w.must(err)
}

// upgrade has the supervisor become the installed program, as soon as it can.
func (w *world) upgrade() supervisor.UpgradeAnswer {
	w.Helper()
	for {
		a, err := w.newer.Upgrade(w.ctx())
		if err == nil {
			return a
		}
		if !errdefs.IsUnavailable(err) {
			w.Fatal(err)
		}
		w.Log("not yet:", err)
		time.Sleep(10 * time.Millisecond)
	}
}

// wantUpgrade installs a variant and wants the supervisor to become it, in the same process.
func (w *world) wantUpgrade(variant string) {
	w.Helper()
	pid := w.supervisorPID()
	w.install(variant)
	if a := w.upgrade(); !a.Replaced || a.Version != variant {
		w.Errorf("upgrade to %q: %+v", variant, a)
	}
	if now := w.supervisorPID(); now != pid {
		w.Errorf("process %d was to become %q, %d runs", pid, variant, now)
	}
	if a, err := w.newer.Upgrade(w.ctx()); err != nil || a.Replaced || a.Version != variant {
		w.Errorf("a second time: %+v, %v", a, err)
	}
}

// nofile is the supervisor's limits of descriptors.
func (w *world) nofile() (l unix.Rlimit) {
	w.Helper()
	w.must(unix.Prlimit(w.supervisorPID(), unix.RLIMIT_NOFILE, nil, &l))
	return l
}

// One version after the other becomes the next while containers write as fast as
// they can: each line is in the log once, in order, whole, and exit codes are the kernel's.
func TestUpgradeLosesNoLine(t *testing.T) {
	w := newWorld(t)
	w.watch()
	const total = 150000
	script := `count() { i=0; while [ $i -lt 50 ]; do seq $((i*3000+1)) $((i*3000+3000)); usleep 100000; i=$((i+1)); done; }
		count & count >&2 & wait; exit 6`
	reqs := []supervisor.RunRequest{w.container("sh", "-c", script), w.container("sh", "-c", script)}
	for _, req := range reqs {
		w.run(req)
	}
	nofile := w.nofile()
	upgrades := 0
	running := func() bool {
		states, err := w.client.List(w.ctx())
		w.must(err)
		return slices.ContainsFunc(states, func(s supervisor.State) bool { return s.Exit == nil })
	}
	for ; upgrades == 0 || running() && upgrades < 20; upgrades++ {
		w.wantUpgrade(fmt.Sprintf("next %d", upgrades))
	}
	t.Logf("upgraded %d times", upgrades)
	if now := w.nofile(); now != nofile {
		t.Errorf("limits of descriptors %+v, they were %+v", now, nofile)
	}
	for _, req := range reqs {
		if e := w.exit(req.ID); e.Code != 6 || e.Reason != "" {
			t.Errorf("exit %+v", e)
		}
		got := w.logged(req)
		for _, stream := range []string{"stdout", "stderr"} {
			checkSeq(t, stream, texts(got, stream), total)
		}
	}
}

// A terminal, a stdin that ends with its first client, and an unfinished line, are the next program's.
func TestUpgradeKeepsStreams(t *testing.T) {
	w := newWorld(t)
	w.watch()
	terminal := w.bundle(func(s *specs.Spec) {
		s.Process.Terminal = true
		s.Process.Args = []string{"sh", "-c", "stty -echo; echo up; while read x; do echo got $x; [ $x = bye ] && exit 7; done; echo lost"}
	})
	terminal.Stdin = true
	once := w.interactive("cat; echo end; exit 3")
	once.StdinOnce = true
	plain := w.interactive("printf begin; read x; echo $x; exit 4")
	for _, req := range []supervisor.RunRequest{terminal, once, plain} {
		w.run(req)
	}
	for i := range 3 {
		w.wantUpgrade(fmt.Sprintf("next %d", i))
		w.must(w.newer.Close()) // then nobody but the supervisor holds anything
	}
	h := w.host()
	for _, tt := range []struct {
		req        supervisor.RunRequest
		send, sees string
		code       int
		log        []string
	}{
		{terminal, "bye\n", "got bye\r\n", 7, []string{"up\r", "got bye\r"}},
		{once, "text\n", "text\n", 3, []string{"text", "end"}},
		{plain, "more\n", "more\n", 4, []string{"beginmore"}},
	} {
		c := w.attach(h, tt.req.ID)
		c.send(tt.send)
		c.sees(c.out, tt.sees)
		_ = c.in.Close()
		if e := w.exit(tt.req.ID); e.Code != tt.code || e.Reason != "" {
			t.Errorf("exit %+v, want %d", e, tt.code)
		}
		if got := texts(w.logged(tt.req), "stdout"); !slices.Equal(got, tt.log) {
			t.Errorf("log %q, want %q", got, tt.log)
		}
	}
}

// Containers that end just then have their own exit codes: children, and those
// whose parent was a supervisor that was killed.
func TestUpgradeWhileContainersEnd(t *testing.T) {
	w := newWorld(t)
	w.watch()
	start := func(n int) (reqs []supervisor.RunRequest) {
		for i := range n {
			req := w.container("sh", "-c", fmt.Sprintf("trap 'exit %d' TERM; echo up; while :; do usleep 5000; done", 10+i))
			w.run(req)
			w.eventually("it is up", func() bool { return len(w.logged(req)) > 0 })
			reqs = append(reqs, req)
		}
		return reqs
	}
	orphans := start(3)
	w.killSupervisor()
	children := start(6)
	var killing sync.WaitGroup
	client := w.client
	killing.Go(func() {
		for i := range children {
			_ = client.Kill(w.ctx(), children[i].ID, unix.SIGTERM, false)
			if i < len(orphans) {
				_ = client.Kill(w.ctx(), orphans[i].ID, unix.SIGTERM, false)
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	for i := range 3 {
		w.wantUpgrade(fmt.Sprintf("next %d", i))
	}
	killing.Wait()
	for i, req := range children {
		if e := w.exit(req.ID); e.Code != 10+i || e.Reason != "" {
			t.Errorf("exit %+v, want %d", e, 10+i)
		}
	}
	for i, req := range orphans {
		w.wantAdopted(req.ID, 10+i)
	}
	w.wantUpgrade("last") // which knows the ends too
	states, err := w.client.List(w.ctx())
	w.must(err)
	for _, s := range states {
		if s.Exit == nil {
			t.Errorf("container %s has no exit any more", s.ID)
		}
	}
}

// Commands run on and their callers get their exit codes; those who hang up end them, as ever.
func TestUpgradeKeepsExecs(t *testing.T) {
	w := newWorld(t)
	req := w.container("sleep", "1000")
	w.run(req)
	type result struct {
		out  string
		code int
		err  error
	}
	results := make(chan result, 4)
	for i := range cap(results) {
		go func() {
			out, code, err := w.exec(w.ctx(), req.ID, "sh", "-c", fmt.Sprintf("echo begun; >/tmp/%d; while [ ! -e /tmp/go ]; do usleep 5000; done; echo done; exit 5", i))
			results <- result{out, code, err}
		}()
	}
	w.eventually("they run", func() bool {
		out, _, err := w.exec(w.ctx(), req.ID, "sh", "-c", "echo /tmp/[0-9]")
		return err == nil && len(strings.Fields(out)) == cap(results) && strings.Contains(out, "3")
	})
	ctx, hangUp := context.WithCancel(w.ctx())
	hung := make(chan error, 1)
	go func() {
		_, _, err := w.exec(ctx, req.ID, "sleep", "3000")
		hung <- err
	}()
	w.eventually("the one that is to be ended runs", func() bool {
		return slices.ContainsFunc(w.processes(), func(pid int) bool {
			cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			return bytes.HasPrefix(cmdline, []byte("sleep\x003000"))
		})
	})
	for i := range 2 {
		w.wantUpgrade(fmt.Sprintf("next %d", i))
	}
	if out, code, err := w.exec(w.ctx(), req.ID, "sh", "-c", "echo new; exit 2"); err != nil || code != 2 || out != "new\n" {
		t.Errorf("a new one: %q, %d, %v", out, code, err)
	}
	hangUp()
	if err := <-hung; err == nil {
		t.Error("the one whose caller hung up succeeded")
	}
	w.eventually("it has ended", func() bool {
		return !slices.ContainsFunc(w.processes(), func(pid int) bool {
			cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			return bytes.HasPrefix(cmdline, []byte("sleep\x003000"))
		})
	})
	if _, _, err := w.exec(w.ctx(), req.ID, "sh", "-c", ">/tmp/go"); err != nil {
		t.Fatal(err)
	}
	for range cap(results) {
		if r := <-results; r.err != nil || r.code != 5 || r.out != "begun\ndone\n" {
			t.Errorf("%+v", r)
		}
	}
	w.delete(req.ID)
}

// A program that does not take over changes nothing; one that crashes when it
// has, is the same as a supervisor that was killed.
func TestUpgradeToABrokenProgram(t *testing.T) {
	w := newWorld(t)
	w.watch()
	h := w.host()
	req := w.container("sh", "-c", "trap 'exit 8' TERM; i=0; while :; do i=$((i+1)); echo $i; usleep 2000; done")
	w.run(req)
	once := w.interactive("cat; echo end")
	once.StdinOnce = true
	w.run(once)
	pid := w.supervisorPID()
	w.install("refusing")
	if _, err := w.newer.Upgrade(w.ctx()); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("to one that refuses: %v", err)
	}
	w.install("not executable any more") // found out when all stands still, and goes on
	if _, err := w.newer.Upgrade(w.ctx()); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "executing") {
		t.Errorf("to one that cannot be executed: %v", err)
	}
	written := len(w.logged(req))
	w.eventually("output goes on", func() bool { return len(w.logged(req)) > written })
	ended := w.container("sh", "-c", "exit 5")
	w.run(ended)
	if e := w.exit(ended.ID); e.Code != 5 {
		t.Errorf("after it: %+v", e)
	}
	w.delete(ended.ID)
	w.binary = filepath.Join(w.dir, "text")
	w.must(os.WriteFile(w.binary, []byte("not a program"), 0o700))
	w.restart()
	if _, err := w.newer.Upgrade(w.ctx()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("to a text: %v", err)
	}
	if a, err := w.client.List(w.ctx()); err != nil || len(a) != 2 || w.supervisorPID() != pid {
		t.Errorf("after them: %v, %v, process %d", a, err, w.supervisorPID())
	}
	for _, variant := range []string{"crashing at once", "crashing late"} {
		w.install(variant)
		if _, err := w.newer.Upgrade(w.ctx()); !errdefs.IsUnavailable(err) {
			t.Errorf("%s: %v", variant, err)
		}
		w.eventually("it is dead", func() bool { s := state(pid); return s == 'X' || s == 'Z' })
		if _, err := w.client.List(w.ctx()); err != nil { // by a new one
			t.Fatal(err)
		}
		pid = w.supervisorPID()
	}
	_ = w.newer.Close()
	c := w.attach(h, once.ID)
	c.send("text\n")
	c.sees(c.out, "text\n")
	_ = c.in.Close()
	c.wantEnd(nil)
	c.saw(c.out, "text\nend\n")
	w.must(w.client.Kill(w.ctx(), req.ID, unix.SIGTERM, false))
	w.wantAdopted(req.ID, 8)
	lines := texts(w.logged(req), "stdout")
	checkSeq(t, "stdout", lines, len(lines))
}

// A supervisor that is killed at any moment of its upgrade, under load, loses no line.
func TestKilledWhileUpgrading(t *testing.T) {
	w := newWorld(t)
	w.watch()
	req := w.container("sh", "-c", "trap 'exit 8' TERM; i=0; while :; do seq $((i*500+1)) $((i*500+500)); i=$((i+1)); usleep 1000; done")
	w.run(req)
	for i := range 10 {
		w.install(fmt.Sprintf("next %d", i))
		pid := w.supervisorPID()
		var killing sync.WaitGroup
		killing.Go(func() {
			time.Sleep(time.Duration(6*i) * time.Millisecond)
			_ = unix.Kill(pid, unix.SIGKILL)
		})
		_, err := w.newer.Upgrade(w.ctx())
		t.Logf("killed after %d ms: %v", 6*i, err)
		killing.Wait()
		w.eventually("it is dead", func() bool { s := state(pid); return s == 'X' || s == 'Z' })
		if _, err := w.client.List(w.ctx()); err != nil {
			t.Fatal(err)
		}
		if out, code, err := w.exec(w.ctx(), req.ID, "sh", "-c", "echo in; exit 3"); err != nil || code != 3 || out != "in\n" {
			t.Errorf("exec after it: %q, %d, %v", out, code, err)
		}
	}
	w.must(w.client.Kill(w.ctx(), req.ID, unix.SIGTERM, false))
	w.wantAdopted(req.ID, 8)
	lines := texts(w.logged(req), "stdout")
	checkSeq(t, "stdout", lines, len(lines))
}
