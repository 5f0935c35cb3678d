package e2e

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/disk"
)

// giveUp is how long a client waits for what hangs.
const giveUp = 700 * time.Millisecond

// bystander is a container that has nothing to do with what hangs.
func (n *node) bystander() *container { return n.runPod("bystander").run("c", forever) }

// served requires that all is well with a container: it can be seen, measured and used, and others be made.
func (c *container) served(when string) {
	c.t.Helper()
	if s := c.status(); s.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		c.t.Errorf("%s a bystander is %v", when, s)
	}
	stats, err := c.Runtime.ListContainerStats(c.context(), &runtimeapi.ListContainerStatsRequest{Filter: &runtimeapi.ContainerStatsFilter{Id: c.id}})
	if err != nil || len(stats.GetStats()) != 1 || stats.GetStats()[0].GetMemory().GetUsageBytes().GetValue() == 0 {
		c.t.Errorf("%s the stats of a bystander are %v (%v)", when, stats, err)
	}
	if _, err := c.Runtime.ListPodSandboxStats(c.context(), &runtimeapi.ListPodSandboxStatsRequest{}); err != nil {
		c.t.Errorf("%s the pods' stats: %v", when, err)
	}
	if out := c.exec("echo", "here"); out != "here\n" {
		c.t.Errorf("%s an exec in a bystander says %q", when, out)
	}
	other := c.node.runPod(fmt.Sprintf("other-%d", time.Now().UnixNano()))
	if out, code := other.output("o", "echo made"); out != "made\n" || code != 0 {
		c.t.Errorf("%s another container says %q, %d", when, out, code)
	}
	if err := c.removePod(other.id); err != nil {
		c.t.Errorf("%s another pod cannot be removed: %v", when, err)
	}
}

// wantHang requires that a call ends with its caller's patience. What could be done in that time may have been.
func (n *node) wantHang(what string, err error) {
	n.t.Helper()
	if status.Code(err) != codes.DeadlineExceeded {
		n.t.Errorf("%s: %v, want DeadlineExceeded", what, err)
	}
}

// A pod whose volume, or log folder, is on a file system that hangs is alone with that; the daemon can be started anew
// meanwhile, for no thread of its own waits for the file system.
func TestHangingVolume(t *testing.T) {
	d := disk.NewHanging(t)
	n := newNode(t)
	beside, p := n.bystander(), n.runPod("pod")
	config := p.containerConfig("c", "cat /vol/file", mounts(&runtimeapi.Mount{ContainerPath: "/vol", HostPath: filepath.Join(d.Dir, "sub")}))
	create := &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config}
	d.Hang()
	for range 2 {
		_, err := n.Runtime.CreateContainer(n.within(giveUp), create)
		n.wantHang("CreateContainer", err)
		_, err = n.Runtime.RunPodSandbox(n.within(giveUp), &runtimeapi.RunPodSandboxRequest{Config: n.podConfig("logs", func(c *runtimeapi.PodSandboxConfig) {
			c.LogDirectory = filepath.Join(d.Dir, "sub/logs")
		})})
		n.wantHang("RunPodSandbox", err)
	}
	beside.served("while a volume hangs")
	if err := n.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	beside.served("after a start while a volume hangs")
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := n.StartDaemon(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err := n.Runtime.CreateContainer(n.within(giveUp), create)
	n.wantHang("CreateContainer after a start", err)
	d.Resume()
	resp, err := n.Runtime.CreateContainer(n.context(), create)
	if err != nil {
		t.Fatal(err)
	}
	c := &container{pod: p, id: resp.GetContainerId(), name: "c"}
	c.start()
	if c.waitExit(); c.logged("stdout") != "content\n" {
		t.Errorf("the volume has %q", c.logged("stdout"))
	}
}
