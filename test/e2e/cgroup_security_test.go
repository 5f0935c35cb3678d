package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
)

func TestSecurityCgroups(t *testing.T) {
	n := newNode(t)
	// A user namespace must not keep a container out of its pod's cgroup, nor its limits from it.
	t.Run("CVE-2025-47291", func(t *testing.T) {
		p := n.runPod("mapped", ownCgroup("mapped"), userns(200000, 200000))
		c := p.run("c", forever, limited)
		if got := read(t, "/proc/"+c.hostPID()+"/cgroup"); !strings.Contains(got, harness.CgroupParent("mapped")+"/") {
			t.Errorf("the container is not below its pod's cgroup:\n%s", got)
		}
		c.wantLimits("start", memory("20971520", "20971520"))
		p.run("hog", "exec "+hog, limited).wantEnd(137, "OOMKilled")
	})
	// A container without memory takes nothing with it that others need.
	t.Run("CVE-2019-14891", func(t *testing.T) {
		p := n.runPod("hogs", ownCgroup("hogs"))
		before := n.SupervisorPIDs()
		for i := range 3 {
			p.run(fmt.Sprint("hog", i), "exec "+hog, limited).wantEnd(137, "OOMKilled")
		}
		if after := n.SupervisorPIDs(); len(before) != 1 || !slices.Equal(before, after) {
			t.Errorf("supervisors %v, before the hogs %v", after, before)
		}
		for _, pid := range append(n.SupervisorPIDs(), n.PID()) {
			if got := read(t, fmt.Sprintf("/proc/%d/cgroup", pid)); strings.Contains(got, harness.CgroupParent("hogs")) {
				t.Errorf("process %d of ours is in the pod's cgroup:\n%s", pid, got)
			}
		}
		c := p.run("later", "echo written; "+forever)
		c.eventually("the log is written", func() bool { return c.logged("stdout") == "written\n" })
		own, err := n.Runtime.PodSandboxStatus(n.context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id})
		if err != nil || own.GetStatus().GetState() != runtimeapi.PodSandboxState_SANDBOX_READY {
			t.Errorf("the pod is %v, %v", own.GetStatus().GetState(), err)
		}
		for _, ns := range []string{"net", "ipc", "uts", "mnt", "pid"} {
			if got, host := c.exec("readlink", "/proc/self/ns/"+ns), readlink(t, "/proc/self/ns/"+ns); strings.TrimSpace(got) == host {
				t.Errorf("the container is in the node's namespace %s", host)
			}
		}
	})
}
