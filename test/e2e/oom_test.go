package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// hog needs more memory than limited allows.
const hog = "dd if=/dev/zero of=/dev/null bs=60M"

func limited(c *runtimeapi.ContainerConfig) {
	c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 20 << 20, MemorySwapLimitInBytes: 20 << 20}
}

func (c *container) wantEnd(code int32, reason string) {
	c.t.Helper()
	if s := c.waitExit(); s.GetExitCode() != code || s.GetReason() != reason {
		c.t.Errorf("container %s ended with code %d, reason %q; want %d, %s", c.name, s.GetExitCode(), s.GetReason(), code, reason)
	}
}

// TestOOMKilled is of containers that end because the kernel was short of memory for them, and of those that do not
// although it has killed a process of theirs.
func TestOOMKilled(t *testing.T) {
	n := newNode(t)
	p := n.runPod("pod", ownCgroup("oom"))
	for _, c := range []struct {
		name, script string
		code         int32
		reason       string
	}{
		{"first-process", "exec " + hog, 137, "OOMKilled"},
		{"child-whose-code-is-passed-on", hog + "; exit $?", 137, "OOMKilled"},
		{"child-survived", hog + "; true", 0, "Completed"},
		{"error-afterwards", hog + "; exit 3", 3, "Error"},
	} {
		t.Run(c.name, func(t *testing.T) { p.run(c.name, c.script, limited).wantEnd(c.code, c.reason) })
	}
	execHog := func(name string) *container {
		c := p.run(name, "trap 'exit $(cat /code)' TERM; while :; do sleep 1000 & wait; done", limited)
		if resp, err := c.execSync(30, "sh", "-c", hog+"; exit $?"); err != nil || resp.GetExitCode() != 137 {
			t.Fatalf("exec ended with code %d, %v; want 137", resp.GetExitCode(), err)
		}
		return c
	}
	t.Run("exec-then-success", func(t *testing.T) {
		c := execHog("exec-then-success")
		c.exec("sh", "-c", "echo 0 > /code")
		c.stop(30)
		c.wantEnd(0, "Completed")
	})
	t.Run("exec-then-error", func(t *testing.T) {
		c := execHog("exec-then-error")
		c.exec("sh", "-c", "echo 7 > /code")
		c.stop(30)
		c.wantEnd(7, "Error")
	})
	t.Run("exec-then-kill", func(t *testing.T) {
		c := execHog("exec-then-kill")
		c.stop(0)
		c.wantEnd(137, "Error")
	})
	t.Run("memory.oom.group", func(t *testing.T) {
		config := p.containerConfig("group", forever, limited)
		config.Linux.Resources.Unified = map[string]string{"memory.oom.group": "1"} // as the kubelet does on version 2
		id, err := p.tryCreate(config)
		if !cgroup2() {
			wantError(t, err, codes.FailedPrecondition, "unified", "cgroup v1")
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		c := &container{pod: p, name: "group", id: id}
		c.start()
		if resp, err := c.execSync(30, "sh", "-c", hog+"; exit $?"); err != nil || resp.GetExitCode() != 137 {
			t.Errorf("exec ended with code %d, %v; want 137", resp.GetExitCode(), err)
		}
		c.wantEnd(137, "OOMKilled")
	})
}

// TestOOMKilledUnseen is an end that the daemon hears of only at its next start.
func TestOOMKilledUnseen(t *testing.T) {
	n := newNode(t)
	dir := t.TempDir()
	c := n.runPod("pod").run("c", "while [ ! -e /mnt/go ]; do sleep 0.05; done; touch /mnt/went; exec "+hog, limited, func(c *runtimeapi.ContainerConfig) {
		c.Mounts = append(c.Mounts, &runtimeapi.Mount{HostPath: dir, ContainerPath: "/mnt"})
	})
	file := c.oomFile()
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n.eventually("the container's cgroup has gone with it", func() bool { return !exists(file) })
	if err := n.StartDaemon(n.context()); err != nil {
		t.Fatal(err)
	}
	c.wantEnd(137, "OOMKilled")
}

// oomFile is where the kernel counts the container's OOM kills.
func (c *container) oomFile() string { return c.cgroupPath("memory.oom_control", "memory.events") }
