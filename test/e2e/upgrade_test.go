package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/disk"
	"github.com/gantry-cri/gantry/test/harness"
)

// counting writes numbers to both streams as fast as its log is read, until it is told to end.
const counting = `trap 'exit 6' TERM
	count() { i=0; while :; do seq $((i*200+1)) $((i*200+200)); i=$((i+1)); usleep 2000; done; }
	count & count >&2 & while :; do wait; done`

// wantCount requires that both streams' logs count from 1, without a gap, a torn or a second line.
func (c *container) wantCount() {
	c.t.Helper()
	next := map[string]int{"stdout": 1, "stderr": 1}
	for _, l := range c.log() {
		if l.partial || l.text != strconv.Itoa(next[l.stream]) {
			c.t.Errorf("%s of %s: %q (partial: %v) instead of %d", l.stream, c.name, l.text, l.partial, next[l.stream])
			return
		}
		next[l.stream]++
	}
	if next["stdout"] < 200 || next["stderr"] < 200 {
		c.t.Errorf("%s has logged %v lines", c.name, next)
	}
}

// anotherSupervisor builds gantry-supervisor in another version, or makes another program of the one that is
// built, where there is no Go.
func (n *node) anotherSupervisor(version string) string {
	n.t.Helper()
	path := filepath.Join(n.t.TempDir(), "gantry-supervisor")
	if tool, err := exec.LookPath("go"); err == nil {
		repo, err := harness.Repository()
		if err != nil {
			n.t.Fatal(err)
		}
		build := exec.Command(tool, "build", "-buildvcs=false", "-trimpath", "-ldflags", "-s -w -X main.version="+version, "-o", path, "./cmd/gantry-supervisor")
		build.Dir, build.Env = repo, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			n.t.Fatalf("building another supervisor: %v\n%s", err, out)
		}
		return path
	}
	program, err := os.ReadFile(n.installedSupervisor())
	if err == nil {
		err = os.WriteFile(path, append(program, version...), 0o755)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	return path
}

func (n *node) installedSupervisor() string {
	return filepath.Join(filepath.Dir(n.Command()[0]), "gantry-supervisor")
}

// restartWith restarts the daemon with another gantry-supervisor installed.
func (n *node) restartWith(supervisor string) {
	n.t.Helper()
	if err := os.WriteFile(n.ConfigFile(), []byte("supervisor = "+strconv.Quote(supervisor)+"\n"), 0o600); err != nil {
		n.t.Fatal(err)
	}
	if err := n.Restart(context.Background()); err != nil {
		n.t.Fatal(err)
	}
}

// wantSupervisor waits until the instance's one supervisor, in its old process, is this program.
func (n *node) wantSupervisor(pid int, program string) {
	n.t.Helper()
	var is string
	n.eventually("the supervisor is "+program+" by its name too", func() bool {
		is, _ = os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)) // which it sets itself, a moment later
		return is == program && string(comm) == "gantry-supervis\n"
	})
	if pids := n.SupervisorPIDs(); len(pids) != 1 || pids[0] != pid {
		n.t.Errorf("supervisors %v, want %d", pids, pid)
	}
}

// A daemon that is restarted with another gantry-supervisor beside it, newer or older, has the running one become
// that, and no container, log, client or exit code notices. One that cannot take over changes nothing.
func TestSupervisorUpgradedInPlace(t *testing.T) {
	n := newNode(t)
	first, second := n.installedSupervisor(), n.anotherSupervisor("another")
	shared := n.runPod("shared", sharedPID)
	init := children(t, n.SupervisorPIDs()[0])
	p := n.runPod("pod")
	counter := p.run("counter", counting)
	terminal := p.run("terminal", "stty -echo; "+echo, interactive, tty)
	stdin := p.run("stdin", "cat; echo end; exit 3", once)
	gate := filepath.Join(n.Dir, "logs", "gate")
	if err := unix.Mkfifo(gate, 0o600); err != nil {
		t.Fatal(err)
	}
	leaving := p.run("leaving", "cat /gate/gate; exit 5", func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{{HostPath: filepath.Dir(gate), ContainerPath: "/gate"}}
	})
	pid := n.SupervisorPIDs()[0]
	for i, program := range []string{second, first, second} {
		n.restartWith(program)
		if i == 2 { // it ends while the supervisor is replaced
			if err := os.WriteFile(gate, nil, 0); err != nil {
				t.Fatal(err)
			}
		}
		for range 10 { // as a kubelet's probes do
			if out := counter.exec("echo", "hello"); out != "hello\n" {
				t.Errorf("a probe got %q", out)
			}
		}
		n.wantSupervisor(pid, program)
	}
	broken := filepath.Join(t.TempDir(), "gantry-supervisor")
	if err := os.WriteFile(broken, []byte("#!/bin/sh\necho cannot >&2\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	n.restartWith(broken)
	n.eventually("the daemon says that the supervisor stays", func() bool { return strings.Contains(n.LogTail(200), "goes on as it is") })
	n.wantSupervisor(pid, second)
	kill(t, init[0])
	n.eventually("the pod whose init has ended is not ready", func() bool { return shared.status().GetState() == runtimeapi.PodSandboxState_SANDBOX_NOTREADY })

	client := terminal.attach("websocket", true)
	client.send("a\n")
	client.sees(client.out, "got a\r\n")
	client = stdin.attach("spdy", false)
	client.send("one\n")
	_ = client.in.Close()
	if code := client.wait(); code != 0 || client.out.String() != "one\nend\n" {
		t.Errorf("crictl ended with %d, wrote %q and %q", code, client.out, client.err)
	}
	counter.stop(30)
	counter.wantCount()
	for c, code := range map[*container]int32{counter: 6, stdin: 3, leaving: 5} {
		if s := c.waitExit(); s.GetExitCode() != code || s.GetMessage() != "" {
			t.Errorf("%s: exit code %d, %q, want %d", c.name, s.GetExitCode(), s.GetMessage(), code)
		}
	}
}

// What the next program cannot go on with runs for ever neither in the daemon's books nor on the node.
func TestUpgradeThatLosesAContainer(t *testing.T) {
	n := newNode(t)
	p := n.runPod("pod")
	kept, lost := p.run("kept", "trap 'exit 4' TERM; while :; do usleep 20000; done"), p.run("lost", "exec sleep 1000")
	record := filepath.Join(n.Dir, "run/supervisor/containers", lost.id, "container.json")
	lostPID := lost.pid()
	program := n.anotherSupervisor("losing")
	next := disk.HoldExecutions(t, program)
	pid := n.SupervisorPIDs()[0]
	restarted := make(chan struct{})
	go func() {
		defer close(restarted)
		n.restartWith(program)
	}()
	next().End() // of the check
	execution := next()
	if err := os.WriteFile(record, []byte("{"), 0o600); err != nil { // it was read by the check
		t.Error(err)
	}
	execution.End()
	<-restarted
	n.wantSupervisor(pid, program)
	if s := lost.waitExit(); s.GetExitCode() != 255 || s.GetMessage() == "" {
		t.Errorf("the one whose record is damaged: %v", s)
	}
	kept.stop(30)
	if s := kept.waitExit(); s.GetExitCode() != 4 || s.GetMessage() != "" {
		t.Errorf("the one beside it: %v", s)
	}
	n.eventually("its process has ended too", func() bool { return unix.Kill(lostPID, 0) == unix.ESRCH })
	if err := os.RemoveAll(filepath.Join(n.Dir, "run/supervisor/quarantine")); err != nil {
		t.Fatal(err)
	}
}

// Daemon and supervisor killed at the same time: what the kernel cannot tell is reported as unknown, and nothing is guessed.
func TestDaemonAndSupervisorKilled(t *testing.T) {
	n := newNode(t)
	p := n.runPod("pod")
	counter := p.run("counter", counting)
	living := p.run("living", "trap '' HUP; trap 'exit 4' TERM; echo up; while :; do usleep 20000; done", tty)
	losing := p.run("losing", "echo up; while read x; do :; done; exit 9", interactive, tty) // read fails when the terminal is gone
	stdin := p.run("stdin", "trap 'exit 7' TERM; cat; echo end; while :; do usleep 20000; done", once)
	leaving := p.run("leaving", "echo up; while :; do usleep 20000; done")
	for _, c := range []*container{living, losing, leaving} {
		n.eventually(c.name+" is up", func() bool { return strings.Contains(c.logged("stdout"), "up") })
	}
	leavingPID := leaving.pid()
	for round := range 3 {
		n.eventually("the counter has written", func() bool { return len(counter.log()) > 1000*(round+1) })
		for _, pid := range append(n.SupervisorPIDs(), n.PID()) {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		if err := n.Kill(); err != nil { // waits for it
			t.Fatal(err)
		}
		n.eventually("the supervisor is dead", func() bool { harness.Reap(); return len(n.SupervisorPIDs()) == 0 })
		if round == 0 {
			if err := unix.Kill(leavingPID, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			n.eventually("a container has ended meanwhile", func() bool { harness.Reap(); return unix.Kill(leavingPID, 0) != nil })
		}
		if err := n.StartDaemon(context.Background()); err != nil {
			t.Fatal(err)
		}
		for _, c := range []*container{counter, living, stdin} {
			if out := c.exec("echo", "hello"); out != "hello\n" {
				t.Errorf("exec in %s got %q", c.name, out)
			}
		}
	}
	if s := leaving.waitExit(); s.GetExitCode() != 255 || !strings.Contains(s.GetMessage(), "unknown") {
		t.Errorf("the one that ended while nobody was there: %v", s)
	}
	losing.wantTrueExit(9)
	n.eventually("stdin has ended", func() bool { return stdin.logged("stdout") == "end\n" })
	client := living.attach("spdy", true)
	if code := client.wait(); code == 0 || !strings.Contains(client.out.String()+client.err.String(), "terminal") {
		t.Errorf("crictl attach to the lost terminal ended with %d, wrote %q and %q", code, client.out, client.err)
	}
	for c, code := range map[*container]int32{counter: 6, living: 4, stdin: 7} {
		c.stop(30)
		c.wantTrueExit(code)
	}
	counter.wantCount()
	if got := living.logged("stdout"); got != "up\r\n" {
		t.Errorf("the log of the one that lost its terminal: %q", got)
	}
	p.run("late", "true").waitExit()
}

// wantTrueExit waits for the exit of a container whose supervisor was killed: with its code, or where the kernel
// does not tell it (before Linux 6.15, or when it ended while nobody was there) 255 and the word that it is unknown.
func (c *container) wantTrueExit(code int32) {
	c.t.Helper()
	s := c.waitExit()
	if s.GetExitCode() == code && s.GetMessage() == "" || s.GetExitCode() == 255 && strings.Contains(s.GetMessage(), "unknown") {
		return
	}
	c.t.Errorf("exit of %s: %d, %q; want %d, or 255 for unknown", c.name, s.GetExitCode(), s.GetMessage(), code)
}
