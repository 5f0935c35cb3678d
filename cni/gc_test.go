package cni

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestLostRecord knows a pod by libcni's cache whose record is lost, wherever the cache is: its addresses are freed.
func TestLostRecord(t *testing.T) {
	for _, name := range []string{"built in", "plugin"} {
		t.Run(name, func(t *testing.T) {
			run := t.TempDir()
			n := newNode(t, func(c *Config) { c.RunDir = run })
			if name == "plugin" {
				n.install("testplugin")
				n.write("10-x.conflist", n.conflist("outer", nil))
				n.uses("outer")
			}
			pod := n.pod()
			n.attach(pod)
			if err := n.Networks.Close(); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(filepath.Join(n.cfg.StateDir, "attachments"), 0); err != nil {
				t.Fatal(err)
			}
			n.open()
			if err := n.GC(n.ctx, []string{pod.ID}); err != nil {
				t.Fatal(err)
			}
			if n.records.get(pod.ID) == nil {
				t.Error("the pod is not known")
			}
			n.detach(pod)
			if addresses, _ := n.bridge.InUse(); addresses > 0 {
				t.Errorf("%d addresses are left", addresses)
			}
			if left, _ := filepath.Glob(filepath.Join(run, "results/*")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// TestGCOfAKilledDaemon does not go on beside the pods of the next one; that of another instance does.
func TestGCOfAKilledDaemon(t *testing.T) {
	n := newNode(t)
	start := func(state string) *exec.Cmd {
		t.Helper()
		cmd := exec.Command("sleep", "1000")
		cmd.Env = []string{"CNI_COMMAND=GC", "CNI_CONTAINERID=", stateEnv + "=" + state}
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	own, others := start(n.cfg.StateDir), start(n.cfg.StateDir+"2")
	ended := make(chan error, 1)
	go func() { ended <- own.Wait() }()
	if err := os.WriteFile(n.collecting(), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n.restart()
	eventually(t, "its own plugin is ended", func() bool { return len(ended) == 1 })
	if _, err := os.Lstat(n.collecting()); !os.IsNotExist(err) {
		t.Errorf("the next start looks for it again: %v", err)
	}
	var status unix.WaitStatus
	if pid, err := unix.Wait4(others.Process.Pid, &status, unix.WNOHANG, nil); pid != 0 || err != nil {
		t.Errorf("another instance's plugin is ended: %v, %v", status, err)
	}
	_ = unix.Kill(-others.Process.Pid, unix.SIGKILL)
	_ = others.Wait()
	_ = unix.Kill(-own.Process.Pid, unix.SIGKILL) // nothing, unless the test failed
}
