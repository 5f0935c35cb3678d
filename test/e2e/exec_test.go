package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestExecSync(t *testing.T) {
	n := newNode(t)
	c := n.runPod("pod").run("c", forever, func(c *runtimeapi.ContainerConfig) {
		c.Envs = []*runtimeapi.KeyValue{{Key: "NAME", Value: []byte("value with spaces")}}
		c.WorkingDir = "/tmp"
	})
	resp, err := c.execSync(10, "sh", "-c", "echo out; echo err >&2; exit 7")
	if err != nil || resp.GetExitCode() != 7 || string(resp.GetStdout()) != "out\n" || string(resp.GetStderr()) != "err\n" {
		t.Errorf("got %v, %v", resp, err)
	}
	if got := c.exec("sh", "-c", "echo $NAME; pwd"); got != "value with spaces\n/tmp\n" {
		t.Errorf("environment and working directory: %q", got)
	}
	_, err = c.execSync(10, "no-such-program")
	if err == nil || !strings.Contains(err.Error(), "no-such-program") {
		t.Errorf("a program that is not there: %v", err)
	}
	c.stop(0)
	_, err = c.execSync(10, "true")
	wantError(t, err, codes.FailedPrecondition, c.id)
	_, err = n.Runtime.ExecSync(n.context(), &runtimeapi.ExecSyncRequest{ContainerId: "none", Cmd: []string{"true"}})
	wantError(t, err, codes.NotFound, "none")
}

// A timeout, and a caller that goes away, end the command and what it has started, and nothing else.
func TestExecSyncTimeoutKills(t *testing.T) {
	n := newNode(t)
	c := n.runPod("pod").run("c", forever)
	left := func() bool { return strings.TrimSpace(c.exec("sh", "-c", "pidof tail || true")) != "" }

	_, err := c.execSync(1, "sh", "-c", "tail -f /dev/null & tail -f /dev/null")
	wantError(t, err, codes.DeadlineExceeded)
	if left() { // critest looks at once too
		t.Error("the timed-out command is still there")
	}

	ctx, cancel := context.WithCancel(n.context())
	done := make(chan error, 1)
	go func() {
		_, err := n.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"tail", "-f", "/dev/null"}})
		done <- err
	}()
	n.eventually("the command runs", left)
	cancel()
	wantError(t, <-done, codes.Canceled)
	n.eventually("the abandoned command is gone", func() bool { return !left() })
	if s := c.status(); s.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is %s", s.GetState())
	}
}

// A command whose child keeps the output open has ended when it has exited.
func TestExecSyncDoesNotWaitForBackgroundChildren(t *testing.T) {
	n := newNode(t)
	c := n.runPod("pod").run("c", forever)
	ctx, cancel := context.WithTimeout(n.context(), time.Minute)
	defer cancel()
	resp, err := n.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"sh", "-c", "sleep 1000 & echo done"}})
	if err != nil || string(resp.GetStdout()) != "done\n" {
		t.Errorf("got %v, %v", resp, err)
	}
}

func TestExecSyncCapsOutput(t *testing.T) {
	n := newNode(t)
	c := n.runPod("pod").run("c", forever)
	// The whole answer has to fit into the 16 MiB that the kubelet takes, so a little less is right.
	const limit, envelope = 16 << 20, 4 << 10
	resp, err := c.execSync(60, "sh", "-c", "yes | head -c 20000000; echo end >&2")
	if err != nil || resp.GetExitCode() != 0 {
		t.Fatalf("exit code %d, %v", resp.GetExitCode(), err)
	}
	if got := len(resp.GetStdout()); got > limit || got < limit-envelope {
		t.Errorf("%d bytes of stdout, want about %d", got, limit)
	}
	if !bytes.HasPrefix(resp.GetStdout(), []byte("y\ny\n")) || string(resp.GetStderr()) != "end\n" {
		t.Errorf("stdout begins %q, stderr %q", resp.GetStdout()[:4], resp.GetStderr())
	}
}

// Output without end costs a bounded amount of memory, and the command goes on to its own end.
func TestExecSyncBoundsMemory(t *testing.T) {
	n := newNode(t)
	c := n.runPod("pod").run("c", forever)
	status := fmt.Sprintf("/proc/%d/", n.PID())
	if err := os.WriteFile(status+"clear_refs", []byte("5"), 0); err != nil { // the peak counts from now on (proc(5))
		t.Fatal(err)
	}
	before := peakKiB(t, status)
	resp, err := c.execSync(60, "sh", "-c", "timeout 4 yes & timeout 4 yes >&2; wait; exit 3")
	if err != nil || resp.GetExitCode() != 3 {
		t.Fatalf("exit code %d, %v", resp.GetExitCode(), err)
	}
	if got := len(resp.GetStdout()) + len(resp.GetStderr()); got > 16<<20 || got < 15<<20 {
		t.Errorf("%d bytes of output", got)
	}
	// Both streams as they are read, the answer, its encoding, and as much again that is yet to be collected.
	if grown := peakKiB(t, status) - before; grown > 256<<10 {
		t.Errorf("the daemon grew by %d KiB", grown)
	} else {
		t.Logf("the daemon grew by %d KiB", grown)
	}
}

// peakKiB is the peak of a process' resident memory.
func peakKiB(t *testing.T, proc string) int {
	t.Helper()
	_, rest, _ := strings.Cut(read(t, proc+"status"), "VmHWM:")
	var kib int
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatalf("no VmHWM: %v", err)
	}
	return kib
}

// A container that is paused takes no command, and says so at once.
func TestExecSyncPaused(t *testing.T) {
	n := newNode(t)
	c := n.runPod("pod").run("c", forever)
	file, on, off := c.cgroupPath("freezer.state", "cgroup.freeze"), "FROZEN", "THAWED"
	if cgroup2() {
		on, off = "1", "0"
	}
	for _, value := range []string{on, off} {
		if err := os.WriteFile(file, []byte(value), 0); err != nil {
			t.Fatal(err)
		}
		n.eventually("it is so", func() bool { return strings.TrimSpace(read(t, file)) == value })
		ctx, cancel := context.WithTimeout(n.context(), 30*time.Second) // of the client: one that it meets is another error
		_, err := n.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"true"}})
		cancel()
		if value == on {
			wantError(t, err, codes.Unknown, "paused")
		} else if err != nil {
			t.Errorf("resumed: %v", err)
		}
	}
}
