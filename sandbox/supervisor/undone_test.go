package supervisor_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/supervisor"
	"github.com/gantry-cri/gantry/test/disk"
)

// The exit code of a container is kept from its end on, also while the output of what outlives it is waited for.
func TestKilledWhileOutputIsAwaited(t *testing.T) {
	w := newWorld(t)
	w.watch()
	w.run(w.container("sleep", "1000")) // so that there is a supervisor to take over
	var req supervisor.RunRequest
	noted := false
	for try := 0; try < 5 && !noted; try++ { // output is awaited for 5 s
		req = w.bundle(func(s *specs.Spec) {
			s.Process.Args = []string{"sh", "-c", "(i=0; while :; do i=$((i+1)); echo $i; usleep 5000; done) & usleep 100000; exit 7"}
			s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.PIDNamespace })
		})
		w.run(req)
		file := filepath.Join(w.dir, "supervisor/containers", req.ID, "exit.json")
		w.eventually("its exit is noted, or about to be told", func() bool {
			data, _ := os.ReadFile(file + ".new")
			noted = strings.Contains(string(data), req.ID)
			_, err := os.Stat(file)
			return noted || err == nil
		})
	}
	if !noted {
		t.Error("the exit is on disk only when the output has been awaited")
	}
	w.killSupervisor()
	if e := w.exit(req.ID); e.Code != 7 || e.Reason != "" {
		t.Errorf("exit %+v", e)
	}
	lines := texts(w.logged(req), "stdout")
	checkSeq(t, "stdout", lines, len(lines))
}

// What an exec has started is killed by the next supervisor also if the process itself is dead already.
func TestKilledInTheUndoOfAnExec(t *testing.T) {
	w := newWorld(t)
	req := w.container("sleep", "1000")
	first := w.run(req)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _, _ = w.exec(w.ctx(), req.ID, "sh", "-c", "sleep 3000 & exec sleep 2000")
	}()
	find := func(seconds string) (found int) {
		for _, pid := range w.processes() {
			cmdline, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
			if string(cmdline) == "sleep\x00"+seconds+"\x00" {
				found = pid
			}
		}
		return found
	}
	var leader, other int
	w.eventually("both run", func() bool { leader, other = find("2000"), find("3000"); return leader > 0 && other > 0 })
	session, err := unix.Getsid(other)
	w.must(err)
	parent := w.supervisorPID()
	w.must(unix.Kill(parent, unix.SIGSTOP))
	w.must(unix.Kill(leader, unix.SIGKILL)) // as it does when it undoes the exec
	w.must(unix.Kill(parent, unix.SIGKILL))
	w.eventually("the supervisor is dead", w.isDead(parent))
	if _, err := w.client.List(w.ctx()); err != nil {
		t.Fatal(err)
	}
	if session == leader { // not so with crun, whose session's leader has ended long ago
		w.eventually("nothing of it is left", w.isDead(other))
	}
	<-done
	if s := state(first); s == 'X' || s == 'Z' {
		t.Error("the container has ended")
	}
}

// A removal that has failed, of a process that could not be killed, is one over an upgrade too: the container is what it was, and its
// end is told when it comes.
func TestUpgradeAfterARemovalThatFailed(t *testing.T) {
	w := newWorld(t)
	w.watch()
	hanging := disk.NewHanging(t)
	req := w.bundle(func(s *specs.Spec) {
		s.Process.Args = []string{"sh", "-c", "while :; do read x </etc/file; usleep 1000; done"}
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/etc", Type: "bind", Source: hanging.Dir, Options: []string{"bind"}})
	})
	pid := w.run(req)
	hanging.Hang()
	hanging.AwaitHung(1)
	ctx, hangUp := context.WithCancel(w.ctx())
	deleted := make(chan error, 1)
	go func() { deleted <- w.client.Delete(ctx, req.ID) }()
	w.eventually("its record says that it is removed", func() bool {
		data, err := os.ReadFile(filepath.Join(w.dir, "supervisor/containers", req.ID, "container.json"))
		return err == nil && strings.Contains(string(data), `"pid":0,`)
	})
	hangUp()
	if err := <-deleted; err == nil {
		t.Fatal("the removal has succeeded")
	}
	w.wantUpgrade("next")
	states, err := w.client.List(w.ctx())
	if err != nil || len(states) != 1 || states[0].PID != pid || states[0].Exit != nil {
		t.Errorf("%+v, %v; process %d", states, err, pid)
	}
	hanging.Resume()
	w.eventually("its process has ended", w.isDead(pid))
	if e := w.exit(req.ID); e.Code != 137 || e.PID != pid || e.Reason != "" {
		t.Errorf("exit %+v", e)
	}
}
