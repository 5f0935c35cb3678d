package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
)

// cgroupFile reads a file of the container's cgroup from the host: v1 or v2 name, whichever this machine has.
func (c *container) cgroupFile(controller, v1, v2 string) string {
	c.t.Helper()
	name := v1
	if cgroup2() {
		name = v2
	}
	return strings.TrimSpace(read(c.t, c.cgroupPath(controller, name)))
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// hostPID finds the container's process 1 among the host's processes by its PID namespace.
func (c *container) hostPID() string {
	c.t.Helper()
	want := strings.TrimSpace(c.exec("readlink", "/proc/self/ns/pid"))
	entries, err := os.ReadDir("/proc")
	if err != nil {
		c.t.Fatal(err)
	}
	for _, e := range entries {
		if ns, err := os.Readlink("/proc/" + e.Name() + "/ns/pid"); err != nil || ns != want {
			continue
		}
		status, err := os.ReadFile("/proc/" + e.Name() + "/status")
		if err != nil {
			continue // ended meanwhile
		}
		for line := range strings.Lines(string(status)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "NSpid:" && f[len(f)-1] == "1" {
				return e.Name()
			}
		}
	}
	c.t.Fatalf("no process 1 in PID namespace %s", want)
	return ""
}

func TestResources(t *testing.T) {
	n := newNode(t)
	p := n.runPod("pod", ownCgroup("resources"))
	c := p.run("c", forever, func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuShares: 512, CpuQuota: 50000, CpuPeriod: 100000, MemoryLimitInBytes: 64 << 20, OomScoreAdj: 900}
	})
	pid := c.hostPID()
	if got := strings.TrimSpace(read(t, "/proc/"+pid+"/oom_score_adj")); got != "900" {
		t.Errorf("oom_score_adj %s, want 900", got)
	}
	if got := read(t, "/proc/"+pid+"/cgroup"); !strings.Contains(got, harness.CgroupParent("resources")+"/") {
		t.Errorf("the container is not below its pod's cgroup:\n%s", got)
	}
	check := func(memory string, quota int64) {
		t.Helper()
		if got := c.cgroupFile("memory", "memory.limit_in_bytes", "memory.max"); got != memory {
			t.Errorf("memory limit %s, want %s", got, memory)
		}
		if got := c.cgroupFile("cpu", "cpu.cfs_quota_us", "cpu.max"); got != fmt.Sprint(quota) && got != fmt.Sprint(quota, " 100000") {
			t.Errorf("cpu quota %s, want %d", got, quota)
		}
	}
	check(fmt.Sprint(64<<20), 50000)
	if got := c.cgroupFile("cpu", "cpu.shares", "cpu.weight"); got != "512" && got != "20" && got != "59" {
		t.Errorf("cpu shares %s, want 512", got)
	}
	_, err := n.Runtime.UpdateContainerResources(n.context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.id,
		Linux: &runtimeapi.LinuxContainerResources{CpuQuota: 20000, CpuPeriod: 100000, MemoryLimitInBytes: 96 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	check(fmt.Sprint(96<<20), 20000)
	if got := c.status().GetResources().GetLinux(); got.GetMemoryLimitInBytes() != 96<<20 || got.GetCpuShares() != 512 {
		t.Errorf("resources in the status after an update: %v", got)
	}
}

func read(t testing.TB, path string) string {
	t.Helper()
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}
