package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox/cgroup"
	"github.com/gantry-cri/gantry/test/harness"
)

// pid is the process id of the container's first process.
func (c *container) pid() int {
	c.t.Helper()
	resp, err := c.Runtime.ContainerStatus(c.context(), &runtimeapi.ContainerStatusRequest{ContainerId: c.id, Verbose: true})
	if err != nil {
		c.t.Fatal(err)
	}
	pid, err := harness.Pid(resp)
	if err != nil || pid < 2 {
		c.t.Fatalf("pid of container %s: %d, %v", c.name, pid, err)
	}
	return pid
}

func kill(t testing.TB, pids ...int) {
	t.Helper()
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
}

// children are the processes whose parent is pid.
func children(t testing.TB, pid int) (pids []int) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range stats {
		b, _ := os.ReadFile(path) // it may be gone
		var child, parent int
		var state string
		rest := string(b[strings.LastIndexByte(string(b), ')')+1:])
		if n, _ := fmt.Sscan(rest, &state, &parent); n == 2 && parent == pid {
			if _, err := fmt.Sscan(string(b), &child); err == nil {
				pids = append(pids, child)
			}
		}
	}
	return pids
}

// end takes from the node what a restart of the machine takes: the daemon, the supervisor, all processes of pods, and
// with emptied all that is in the run directory and every mount there.
func (n *node) end(emptied bool) {
	n.t.Helper()
	supervisors := n.SupervisorPIDs()
	containers := children(n.t, supervisors[0])
	if err := n.Stop(); err != nil {
		n.t.Fatal(err)
	}
	kill(n.t, supervisors...)
	kill(n.t, containers...)
	n.eventually("all processes are gone", func() bool {
		harness.Reap() // a PID namespace ends when all in it are reaped
		for _, pid := range containers {
			if unix.Kill(pid, 0) == nil {
				return false
			}
		}
		return len(n.SupervisorPIDs()) == 0
	})
	if emptied {
		n.emptyRun()
	}
}

func (n *node) emptyRun() {
	n.t.Helper()
	run := filepath.Join(n.Dir, "run")
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		n.t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		if at := strings.Fields(line)[4]; strings.HasPrefix(at, run+"/") {
			if err := unix.Unmount(at, unix.MNT_DETACH); err != nil && err != unix.EINVAL { // went with the one that it was on
				n.t.Fatalf("unmounting %s: %v", at, err)
			}
		}
	}
	if err := os.RemoveAll(run); err != nil {
		n.t.Fatal(err)
	}
}

// rewrite changes all records of a kind.
func (n *node) rewrite(kind, pattern, with string) {
	n.t.Helper()
	files, err := filepath.Glob(filepath.Join(n.Dir, "root", kind, "*.json"))
	if err != nil || len(files) == 0 {
		n.t.Fatalf("records of %s: %v, %v", kind, files, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			n.t.Fatal(err)
		}
		if err := os.WriteFile(f, regexp.MustCompile(pattern).ReplaceAll(b, []byte(with)), 0o600); err != nil {
			n.t.Fatal(err)
		}
	}
}

// wantLost requires that the pod and its containers, one that ran and one that did not, are reported as what a
// restart has ended, that they can be removed, and that the pod can be made again.
func (p *pod) wantLost(ran, created *container) {
	p.t.Helper()
	if s := p.status(); s.GetState() != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		p.t.Errorf("the pod is %v", s)
	}
	if s := ran.status(); s.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED || s.GetExitCode() != 255 || s.GetReason() != "Unknown" ||
		s.GetStartedAt() == 0 || s.GetFinishedAt() < s.GetStartedAt() {
		p.t.Errorf("the container that ran is %v", s)
	}
	if s := created.status(); s.GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING {
		p.t.Errorf("the container that was created is %v", s)
	}
	if _, err := p.tryCreate(p.containerConfig("late", forever)); err == nil {
		p.t.Error("a container could be made in a pod that is not ready")
	}
	again := p.runPod(p.config.GetMetadata().GetName(), func(c *runtimeapi.PodSandboxConfig) {
		c.Metadata.Attempt = 2
		c.Linux = p.config.GetLinux()
	})
	c := again.run("c", forever)
	if err := p.removePod(p.id); err != nil {
		p.t.Errorf("removing the lost pod: %v", err)
	}
	if got := c.exec("echo", "hello"); got != "hello\n" {
		p.t.Errorf("exec in the pod made again: %q", got)
	}
}

func TestReboot(t *testing.T) {
	for name, emptied := range map[string]bool{"run directory emptied": true, "run directory kept": false} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			p, shared, host := n.runPod("pod"), n.runPod("shared", sharedPID), n.runPod("host", hostNetwork)
			stopped := n.runPod("stopped")
			done := stopped.run("done", "exit 4")
			before := done.waitExit()
			if _, err := n.Runtime.StopPodSandbox(n.context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: stopped.id}); err != nil {
				t.Fatal(err)
			}
			pods := []*pod{p, shared, host}
			var ran, created []*container
			for _, p := range pods {
				ran, created = append(ran, p.run("ran", forever)), append(created, p.create("created", forever))
			}
			n.end(emptied)
			n.rewrite("pods", `"bootID":"[^"]*"`, `"bootID":"before"`)
			n.rewrite("containers", `"bootID":"[^"]*"`, `"bootID":"before"`)
			if err := n.StartDaemon(context.Background()); err != nil {
				t.Fatal(err)
			}
			for i, p := range pods {
				p.wantLost(ran[i], created[i])
			}
			if s := done.status(); s.GetExitCode() != 4 || s.GetFinishedAt() != before.GetFinishedAt() || s.GetReason() != before.GetReason() {
				t.Errorf("what had exited before: %v; was %v", s, before)
			}
		})
	}
}

// A machine whose run directory is emptied without a reboot (a node that is itself a container, restarted) has lost
// its pods too, though the boot id says nothing.
func TestRunDirectoryLost(t *testing.T) {
	n := newNode(t)
	p, shared := n.runPod("pod"), n.runPod("shared", sharedPID)
	ran, created := p.run("ran", forever), p.create("created", forever)
	sharedRan, sharedCreated := shared.run("ran", forever), shared.create("created", forever)
	n.end(true)
	if err := n.StartDaemon(context.Background()); err != nil {
		t.Fatal(err)
	}
	p.wantLost(ran, created)
	shared.wantLost(sharedRan, sharedCreated)
}

// Without its init no container can be started in a pod with a shared PID namespace: the kubelet must learn of it.
func TestPodInitKilled(t *testing.T) {
	for name, away := range map[string]bool{"watched": false, "while the daemon is away": true} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			p := n.runPod("pod", sharedPID)
			init := children(t, n.SupervisorPIDs()[0])
			if len(init) != 1 {
				t.Fatalf("children of the supervisor: %v", init)
			}
			c := p.run("c", forever)
			if away {
				if err := n.Stop(); err != nil {
					t.Fatal(err)
				}
			}
			kill(t, init[0])
			if away {
				if err := n.StartDaemon(context.Background()); err != nil {
					t.Fatal(err)
				}
			}
			n.eventually("the pod is not ready", func() bool { return p.status().GetState() == runtimeapi.PodSandboxState_SANDBOX_NOTREADY })
			if s := c.waitExit(); s.GetExitCode() != 137 {
				t.Errorf("the container has ended with %v", s)
			}
			again := n.runPod("pod", sharedPID) // the same attempt: the lost pod is not in its way
			again.run("c", forever)
		})
	}
}

// A damaged record, or one that reads well and claims what is not its pod's, costs its pod, wholly, and no other.
func TestDamagedPodRecord(t *testing.T) {
	t.Run("cut off", func(t *testing.T) {
		damagedPodRecord(t, func(path string) error { return os.Truncate(path, 100) }, "unexpected end of JSON input")
	})
	t.Run("hostile", func(t *testing.T) {
		victim, err := cgroup.MkdirParents("/gantrytest/victim") // which is empty, and so would be removed
		if err != nil {
			t.Fatal(err)
		}
		damagedPodRecord(t, func(path string) error {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			var env map[string]any
			if err := json.Unmarshal(data, &env); err != nil {
				return err
			}
			env["record"].(map[string]any)["cgroups"] = victim
			if data, err = json.Marshal(env); err != nil {
				return err
			}
			return os.WriteFile(path, data, 0o600)
		}, "cgroups has")
		for _, dir := range slices.Backward(victim) {
			if !cgroup.Exists(dir) {
				t.Errorf("cgroup %s was removed", dir)
			}
			if err := cgroup.RemoveEmpty(dir); err != nil {
				t.Error(err)
			}
		}
	})
}

func damagedPodRecord(t *testing.T, damage func(path string) error, why string) {
	n := newNode(t)
	good := n.runPod("good")
	withMuch := func(c *runtimeapi.PodSandboxConfig) {
		c.PortMappings = []*runtimeapi.PortMapping{{HostPort: 18080, ContainerPort: 80}}
	}
	damaged := &pod{node: n, config: n.podConfig("damaged", sharedPID, withMuch)}
	resp, err := n.Runtime.RunPodSandbox(n.context(), &runtimeapi.RunPodSandboxRequest{Config: damaged.config})
	if err != nil {
		t.Fatal(err)
	}
	damaged.id = resp.GetPodSandboxId()
	kept, lost := good.run("kept", forever), damaged.run("lost", forever)
	damaged.create("created", forever)
	pid := lost.pid()
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := damage(filepath.Join(n.Dir, "root/pods", damaged.id+".json")); err != nil {
		t.Fatal(err)
	}
	if err := n.StartDaemon(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := n.pods(); len(got) != 1 || got[0].GetId() != good.id || got[0].GetState() != runtimeapi.PodSandboxState_SANDBOX_READY {
		t.Errorf("pods: %v", got)
	}
	if s := kept.status(); s.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the other pod's container: %v", s)
	}
	kept.exec("true")
	if err := unix.Kill(pid, 0); err == nil {
		t.Error("the container of the damaged pod still runs")
	}
	aside, err := filepath.Glob(filepath.Join(n.Dir, "root/quarantine", "pods-"+damaged.id+"*"))
	if err != nil || len(aside) != 1 {
		t.Errorf("in quarantine: %v, %v", aside, err)
	}
	if log := n.LogTail(200); !strings.Contains(log, why) {
		t.Errorf("the log does not say %q:\n%s", why, log)
	}
	again := n.runPod("damaged", sharedPID, withMuch) // with the same name, address and port
	again.run("c", forever)
	if err := n.removePod(again.id); err != nil {
		t.Error(err)
	}
	if err := n.removePod(good.id); err != nil {
		t.Error(err)
	}
	// The quarantine is for people to look at; everything else must be gone.
	if err := os.RemoveAll(filepath.Join(n.Dir, "root/quarantine")); err != nil {
		t.Fatal(err)
	}
	if err := n.Audit(); err != nil {
		t.Error(err)
	}
}

// A disk that takes no record must not keep the daemon from taking over what runs.
func TestStartWithoutWritableRecords(t *testing.T) {
	n := newNode(t)
	c := n.runPod("pod").run("c", forever)
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(n.Dir, "root/containers")
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if err := n.StartDaemon(context.Background()); err != nil {
		t.Fatal(err)
	}
	if s := c.status(); s.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is %v", s)
	}
	c.stop(0)
}

// A second daemon with records of its own would take all in the run directory for leftovers.
func TestRunDirectoryInUse(t *testing.T) {
	n := newNode(t)
	c := n.runPod("pod").run("c", forever)
	other := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	run := filepath.Join(n.Dir, "run")
	out, err := harness.Gantry(ctx, "serve", "--root", other+"/root", "--run", run, "--socket", other+"/s.sock",
		"--runtime", "runc="+realRunc(t), "--bridge", "gtest-other", "--subnet", "10.98.0.0/24")
	if err == nil || ctx.Err() != nil || !strings.Contains(out, run) {
		t.Errorf("a second daemon with the same --run: %v, %s", err, out)
	}
	if s := c.status(); s.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container of the first is %v", s)
	}
}
