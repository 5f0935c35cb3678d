package supervisor_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/test/disk"
)

// upgrading has the supervisor become the installed program, in the background.
func (w *world) upgrading() <-chan error {
	done := make(chan error, 1)
	client, ctx := w.newer, w.ctx()
	go func() {
		_, err := client.Upgrade(ctx)
		done <- err
	}()
	return done
}

func (w *world) isDead(pid int) func() bool {
	return func() bool { s := state(pid); return s == 'X' || s == 'Z' }
}

// A SIGTERM ends the supervisor also when it comes as the program is being replaced, and containers live on.
func TestTermWhileUpgrading(t *testing.T) {
	w := newWorld(t)
	w.watch()
	req := w.container("sh", "-c", "trap 'exit 8' TERM; while :; do usleep 2000; done")
	w.run(req)
	w.install("next")
	next := disk.HoldExecutions(t, w.binary)
	upgraded := w.upgrading()
	next().End() // of the check
	second := next()
	pid := w.supervisorPID()
	if second.PID != pid {
		t.Errorf("process %d executes the program, not the supervisor, %d", second.PID, pid)
	}
	w.must(unix.Kill(pid, unix.SIGTERM))
	w.eventually("it has ended, or does not heed it", func() bool { return w.isDead(pid)() || !pending(pid, unix.SIGTERM) })
	second.End()
	if err := <-upgraded; !errdefs.IsUnavailable(err) {
		t.Errorf("upgrade: %v", err)
	}
	w.eventually("it has ended", w.isDead(pid))
	for i := range 10 { // and at any other moment
		w.install(fmt.Sprintf("next %d", i))
		pid := w.supervisorPID()
		upgraded := w.upgrading()
		time.Sleep(time.Duration(15*i) * time.Millisecond)
		w.must(unix.Kill(pid, unix.SIGTERM))
		err := <-upgraded
		if t.Logf("SIGTERM after %d ms: %v", 15*i, err); err != nil && !errdefs.IsUnavailable(err) {
			t.Error("it is not tried again")
		}
		w.eventually("it has ended", w.isDead(pid))
	}
	if out, code, err := w.exec(w.ctx(), req.ID, "sh", "-c", "echo in; exit 3"); err != nil || code != 3 || out != "in\n" {
		t.Errorf("exec after it: %q, %d, %v", out, code, err)
	}
	w.must(w.client.Kill(w.ctx(), req.ID, unix.SIGTERM, false))
	w.wantAdopted(req.ID, 8)
}

// pending says whether no thread of the process has taken the signal yet.
func pending(pid int, sig unix.Signal) bool {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(status)) {
		var set uint64
		if n, _ := fmt.Sscanf(line, "ShdPnd: %x", &set); n == 1 {
			return set&(1<<(sig-1)) != 0
		}
	}
	return false
}

// The check of another program ends with the supervisor that waits for it.
func TestKilledInTheCheck(t *testing.T) {
	w := newWorld(t)
	w.run(w.container("sleep", "1000"))
	w.install("checking without end")
	upgraded := w.upgrading()
	pid, check := w.supervisorPID(), 0
	w.eventually("it checks", func() bool {
		for _, p := range w.processes() {
			cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p))
			if s, parent := stat(p); strings.Contains(string(cmdline), "\x00--check\x00") && parent == pid && s == 'S' {
				check = p
			}
		}
		return check > 0
	})
	w.must(unix.Kill(pid, unix.SIGKILL))
	if err := <-upgraded; !errdefs.IsUnavailable(err) {
		t.Errorf("upgrade: %v", err)
	}
	w.eventually("the check has ended too", w.isDead(check))
	w.eventually("the supervisor is dead", w.isDead(pid))
	w.binary, _ = os.Executable() // for the next one, which the audit asks for
	w.restart()
}

// A program that was written to after its check is checked again.
func TestUpgradeToAProgramThatChanges(t *testing.T) {
	w := newWorld(t)
	w.run(w.container("sleep", "1000"))
	w.install("touched in the check")
	if a, err := w.newer.Upgrade(w.ctx()); !errdefs.IsUnavailable(err) {
		t.Errorf("%+v, %v", a, err)
	}
}

// Of a container that the next program cannot go on with, nothing stays open.
func TestUpgradeToAProgramThatCannotInherit(t *testing.T) {
	w := newWorld(t)
	w.watch()
	kept := w.container("sleep", "1000")
	w.run(kept)
	before := w.openOfContainers()
	lost := w.interactive("echo up; exec sleep 1000")
	pid := w.run(lost)
	w.eventually("its output is in the log", func() bool { return len(w.logged(lost)) > 0 })
	w.must(os.WriteFile(filepath.Join(w.dir, "to-be-damaged"), []byte(lost.ID), 0o600))
	w.wantUpgrade("damaging")
	w.eventually("nothing of it is open", func() bool { return slices.Equal(w.openOfContainers(), before) })
	if states, err := w.newer.List(w.ctx()); err != nil || len(states) != 1 || states[0].ID != kept.ID {
		t.Errorf("%+v, %v", states, err)
	}
	w.must(unix.Kill(pid, unix.SIGKILL))
	w.eventually("the OCI runtime deletes it", func() bool {
		return exec.Command(w.runtime.Path, "--root", w.runtime.Root, "delete", "--force", lost.ID).Run() == nil
	})
	w.must(os.RemoveAll(filepath.Join(w.dir, "supervisor/quarantine")))
}

// openOfContainers are the supervisor's descriptors of containers, their logs and processes.
func (w *world) openOfContainers() (open []string) {
	w.Helper()
	pid := w.supervisorPID()
	for _, fd := range list(fmt.Sprintf("/proc/%d/fd", pid)) {
		target, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd))
		if strings.HasPrefix(target, w.dir) && !strings.HasSuffix(target, "supervisor.log") && !strings.HasSuffix(target, "/lock") || strings.Contains(target, "pidfd") {
			open = append(open, target)
		}
	}
	slices.Sort(open)
	return open
}
