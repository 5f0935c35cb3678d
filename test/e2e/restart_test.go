package e2e

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/images"
)

// Containers neither need nor notice the daemon: they run and log while it is away, and what happened meanwhile is
// reported truly when it is back.
func TestContainersOutliveTheDaemon(t *testing.T) {
	for name, end := range map[string]func(*node) error{
		"stopped": func(n *node) error { return n.Stop() },
		"killed":  func(n *node) error { return n.Kill() },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			p := n.runPod("pod")
			gate := filepath.Join(n.Dir, "logs", "gate")
			if err := unix.Mkfifo(gate, 0o600); err != nil {
				t.Fatal(err)
			}
			ticking := p.run("ticking", "while :; do echo tick; sleep 0.02; done")
			leaving := p.run("leaving", "cat /gate/gate; echo leaving; exit 5", func(c *runtimeapi.ContainerConfig) {
				c.Mounts = []*runtimeapi.Mount{{HostPath: filepath.Dir(gate), ContainerPath: "/gate"}}
			})
			status, started := p.status(), ticking.status().GetStartedAt()
			supervisors := n.SupervisorPIDs()
			if len(supervisors) != 1 {
				t.Fatalf("%d supervisors, want 1", len(supervisors))
			}
			if err := end(n); err != nil {
				t.Fatal(err)
			}

			lines := len(ticking.log())
			n.eventually("the container logs without the daemon", func() bool { return len(ticking.log()) > lines+5 })
			opened := time.Now()
			if err := os.WriteFile(gate, []byte("go\n"), 0); err != nil { // returns when the container has read it
				t.Fatal(err)
			}
			n.eventually("the other container has left", func() bool { return leaving.logged("stdout") == "go\nleaving\n" })
			exit := filepath.Join(n.Dir, "run/supervisor/containers", leaving.id, "exit.json")
			n.eventually("its exit is recorded", func() bool { _, err := os.Stat(exit); return err == nil })
			returned := time.Now()
			if err := n.StartDaemon(context.Background()); err != nil {
				t.Fatal(err)
			}

			s := leaving.waitExit()
			if at := time.Unix(0, s.GetFinishedAt()); s.GetExitCode() != 5 || at.Before(opened) || !at.Before(returned) {
				t.Errorf("the exit meanwhile: code %d at %s; want 5, between %s and %s", s.GetExitCode(), at, opened, returned)
			}
			if s := ticking.status(); s.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING || s.GetStartedAt() != started {
				t.Errorf("the running container after the return: %v", s)
			}
			if got := p.status(); got.GetState() != status.GetState() || got.GetNetwork().GetIp() != status.GetNetwork().GetIp() || got.GetCreatedAt() != status.GetCreatedAt() {
				t.Errorf("the pod after the return: %v, before: %v", got, status)
			}
			if got := n.SupervisorPIDs(); len(got) != 1 || got[0] != supervisors[0] {
				t.Errorf("supervisors %v after the return, %v before", got, supervisors)
			}
			if got := ticking.exec("echo", "hello"); got != "hello\n" {
				t.Errorf("exec after the return: %q", got)
			}
			p.run("late", "true").waitExit()
			ticking.stop(0)
			if s := ticking.status(); s.GetExitCode() != 137 {
				t.Errorf("stopped after the return with code %d, want 137", s.GetExitCode())
			}
		})
	}
}

// Without its supervisor a node goes on: a new one takes the containers over.
func TestSupervisorIsReplaced(t *testing.T) {
	n := newNode(t)
	p := n.runPod("pod")
	ticking := p.run("ticking", "while :; do echo tick; sleep 0.02; done")
	old := n.SupervisorPIDs()
	if len(old) != 1 {
		t.Fatalf("%d supervisors, want 1", len(old))
	}
	if err := unix.Kill(old[0], unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.eventually("there is a new supervisor", func() bool {
		got := n.SupervisorPIDs()
		return len(got) == 1 && got[0] != old[0]
	})
	lines := len(ticking.log())
	n.eventually("the container logs on", func() bool { return len(ticking.log()) > lines+5 })
	n.eventually("a command runs", func() bool {
		resp, err := ticking.execSync(10, "true")
		return err == nil && resp.GetExitCode() == 0
	})
	ticking.stop(0)
	if s := ticking.status(); s.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Errorf("after a stop the container is %s", s.GetState())
	}
	p.run("late", "true").waitExit()
}

// Images, and what was exited, are still there after a restart.
func TestStateSurvivesRestart(t *testing.T) {
	n := newNode(t)
	p, stopped := n.runPod("pod"), n.runPod("stopped")
	done, created := p.run("done", "exit 4"), p.create("created", forever)
	before := done.waitExit()
	if _, err := n.Runtime.StopPodSandbox(n.context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: stopped.id}); err != nil {
		t.Fatal(err)
	}
	if err := n.Restart(context.Background()); err != nil {
		t.Fatal(err)
	}
	after := done.status()
	if after.GetExitCode() != 4 || after.GetFinishedAt() != before.GetFinishedAt() || after.GetReason() != before.GetReason() {
		t.Errorf("an exited container after a restart: %v; before: %v", after, before)
	}
	if s := stopped.status(); s.GetState() != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("a stopped pod after a restart is %s", s.GetState())
	}
	resp, err := n.Image.ImageStatus(n.context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: images.Busybox}})
	if err != nil || resp.GetImage() == nil {
		t.Errorf("the image after a restart: %v, %v", resp, err)
	}
	created.start()
	if s := created.status(); s.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("a container created before the restart and started after it is %s", s.GetState())
	}
}

// A kill at any moment of a pod's making leaves nothing that a retry or a removal does not clean up.
func TestKilledWhileMakingPods(t *testing.T) {
	n := newNode(t)
	for round := range 6 {
		config := n.podConfig("pod")
		config.Metadata.Attempt = uint32(round)
		done := make(chan struct{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		go func() {
			defer close(done)
			resp, err := n.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
			if err == nil {
				p := &pod{node: n, id: resp.GetPodSandboxId(), config: config}
				_, _ = n.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, // may be cut off
					Config: p.containerConfig("c", forever), SandboxConfig: config})
			}
		}()
		time.Sleep(time.Duration(round) * 2 * time.Millisecond) // a different step each round
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
		cancel()
		<-done
		if err := n.StartDaemon(context.Background()); err != nil {
			t.Fatal(err)
		}
		resp, err := n.Runtime.RunPodSandbox(n.context(), &runtimeapi.RunPodSandboxRequest{Config: config})
		if err != nil {
			t.Fatalf("round %d: the retry: %v", round, err)
		}
		p := &pod{node: n, id: resp.GetPodSandboxId(), config: config}
		id, err := p.tryCreate(p.containerConfig("c", forever))
		if err != nil {
			t.Fatalf("round %d: the retry: %v", round, err)
		}
		c := &container{pod: p, id: id, name: "c"}
		c.start()
		if err := n.removePod(p.id); err != nil {
			t.Fatalf("round %d: removing: %v", round, err)
		}
	}
}
