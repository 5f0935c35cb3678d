package e2e

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (c *container) update(r *runtimeapi.LinuxContainerResources) error {
	_, err := c.Runtime.UpdateContainerResources(c.context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.id, Linux: r})
	return err
}

func TestUpdateContainerResources(t *testing.T) {
	n := newNode(t)
	p := n.runPod("pod", ownCgroup("update"))
	const mib = 1 << 20
	c := p.run("c", "head -c 20000000 /dev/zero > /dev/shm/held; "+forever, func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuShares: 512, MemoryLimitInBytes: 64 * mib, OomScoreAdj: 800}
	})
	n.eventually("the container holds its memory", func() bool {
		return strings.TrimSpace(c.exec("stat", "-c", "%s", "/dev/shm/held")) == "20000000"
	})
	// The files, by what they are for: each step changes some, the others must stay.
	want := map[string]limit{"shares": shares("512", "59"), "quota": quota("-1", "max 100000"),
		"memory": memory("67108864", "67108864"), "swap": swap("67108864", "0")}
	score := "800"
	check := func(when string) {
		t.Helper()
		for _, l := range want {
			c.wantLimits(when, l)
		}
		if got := strings.TrimSpace(read(t, "/proc/"+c.hostPID()+"/oom_score_adj")); got != score {
			t.Errorf("%s: oom_score_adj is %s, want %s", when, got, score)
		}
	}
	check("start")
	for _, step := range []struct {
		name   string
		r      *runtimeapi.LinuxContainerResources
		code   codes.Code
		names  string
		change map[string]limit
		score  string
	}{
		{name: "all", r: &runtimeapi.LinuxContainerResources{CpuShares: 1024, CpuQuota: 20000, CpuPeriod: 100000, MemoryLimitInBytes: 96 * mib, MemorySwapLimitInBytes: 96 * mib,
			CpusetCpus: "0", OomScoreAdj: 900, HugepageLimits: hugePages(t)},
			change: map[string]limit{"shares": shares("1024", "100"), "quota": quota("20000", "20000 100000"), "memory": memory("100663296", "100663296"),
				"swap": swap("100663296", "0"), "cpus": cpus("0")}, score: "900"},
		{name: "cpuset alone", r: &runtimeapi.LinuxContainerResources{CpusetMems: "0"}, change: map[string]limit{"mems": mems("0")}},
		{name: "swap", r: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 * mib, MemorySwapLimitInBytes: 128 * mib},
			change: map[string]limit{"memory": memory("67108864", "67108864"), "swap": swap("134217728", "67108864")}},
		{name: "memory alone, the swap limit counts it", r: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 96 * mib},
			change: map[string]limit{"memory": memory("100663296", "100663296"), "swap": swap("134217728", "33554432")}},
		{name: "swap alone", r: &runtimeapi.LinuxContainerResources{MemorySwapLimitInBytes: 160 * mib}, change: map[string]limit{"swap": swap("167772160", "67108864")}},
		{name: "memory above the swap limit", r: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 256 * mib}, code: codes.InvalidArgument, names: "memory_swap_limit_in_bytes"},
		{name: "both again", r: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 * mib, MemorySwapLimitInBytes: 128 * mib},
			change: map[string]limit{"memory": memory("67108864", "67108864"), "swap": swap("134217728", "67108864")}},
		{name: "no CPU limit", r: &runtimeapi.LinuxContainerResources{CpuQuota: -1}, change: map[string]limit{"quota": quota("-1", "max 100000")}},
		{name: "memory below what is in use", r: &runtimeapi.LinuxContainerResources{CpuShares: 100, MemoryLimitInBytes: 8 * mib, OomScoreAdj: 950},
			code: codes.FailedPrecondition, names: "memory limit 8388608"},
		{name: "no such processor", r: &runtimeapi.LinuxContainerResources{CpuShares: 100, MemoryLimitInBytes: 128 * mib, CpusetCpus: "8000"},
			code: codes.Unknown, names: "cpuset.cpus"},
		{name: "bad value", r: &runtimeapi.LinuxContainerResources{CpuShares: 100, CpusetCpus: "x"}, code: codes.InvalidArgument, names: "cpuset_cpus"},
	} {
		err := c.update(step.r)
		if step.code != codes.OK {
			wantError(t, err, step.code, step.names)
		} else if err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		for k, l := range step.change {
			want[k] = l
		}
		if step.score != "" {
			score = step.score
		}
		if systemdDriver() {
			if out, err := exec.Command("systemctl", "daemon-reload").CombinedOutput(); err != nil {
				t.Fatalf("systemctl daemon-reload: %v: %s", err, out)
			}
		}
		check(step.name)
	}
	if cgroup2() {
		if err := c.update(&runtimeapi.LinuxContainerResources{Unified: map[string]string{"memory.high": "50331648"}}); err != nil {
			t.Error(err)
		}
		c.wantLimits("unified", limit{"", "memory.high", "", "50331648"})
	}

	// The kubelet compares what is reported with what it has sent.
	reported := func() *runtimeapi.LinuxContainerResources { return c.status().GetResources().GetLinux() }
	before := fmt.Sprint(reported())
	if r := reported(); r.GetCpuShares() != 1024 || r.GetCpuQuota() != -1 || r.GetCpuPeriod() != 100000 || r.GetMemoryLimitInBytes() != 64*mib ||
		r.GetMemorySwapLimitInBytes() != 128*mib || r.GetCpusetCpus() != "0" || r.GetOomScoreAdj() != 900 {
		t.Errorf("reported %v", r)
	}
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := n.StartDaemon(n.context()); err != nil {
		t.Fatal(err)
	}
	if after := fmt.Sprint(reported()); after != before {
		t.Errorf("after a restart reported %s, before %s", after, before)
	}
	check("restart")
	c.stop(0)
	wantError(t, c.update(&runtimeapi.LinuxContainerResources{CpuShares: 100}), codes.FailedPrecondition, "exited")
}

// TestUpdateCreatedContainer is of limits that come before the start.
func TestUpdateCreatedContainer(t *testing.T) {
	n := newNode(t)
	c := n.runPod("pod").create("c", forever)
	if err := c.update(&runtimeapi.LinuxContainerResources{CpuShares: 512, MemoryLimitInBytes: 64 << 20, OomScoreAdj: 700}); err != nil {
		t.Fatal(err)
	}
	wantError(t, c.update(&runtimeapi.LinuxContainerResources{CpuShares: 100, CpuQuota: 1}), codes.InvalidArgument, "cpu_quota")
	c.start()
	c.wantLimits("start", shares("512", "59"), memory("67108864", "67108864"), swap("67108864", "0"))
	if got := strings.TrimSpace(read(t, "/proc/"+c.hostPID()+"/oom_score_adj")); got != "700" {
		t.Errorf("oom_score_adj %s, want 700", got)
	}
	if r := c.status().GetResources().GetLinux(); r.GetCpuShares() != 512 || r.GetMemoryLimitInBytes() != 64<<20 {
		t.Errorf("reported %v", r)
	}
}

func TestUpdatePodSandboxResources(t *testing.T) {
	n := newNode(t)
	p := n.runPod("pod", func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.Overhead = &runtimeapi.LinuxContainerResources{CpuShares: 10}
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuShares: 20}
	})
	shown := func() (overhead, resources int64) {
		t.Helper()
		resp, err := n.Runtime.PodSandboxStatus(n.context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
		if err != nil {
			t.Fatal(err)
		}
		var info struct {
			Overhead, Resources struct {
				Shares int64 `json:"cpu_shares"`
			}
		}
		if err := json.Unmarshal([]byte(resp.GetInfo()["info"]), &info); err != nil {
			t.Fatal(err)
		}
		return info.Overhead.Shares, info.Resources.Shares
	}
	if o, r := shown(); o != 10 || r != 20 {
		t.Errorf("made with %d and %d, want 10 and 20", o, r)
	}
	update := func(id string, r *runtimeapi.LinuxContainerResources) error {
		_, err := n.Runtime.UpdatePodSandboxResources(n.context(), &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: id, Resources: r})
		return err
	}
	if err := update(p.id, &runtimeapi.LinuxContainerResources{CpuShares: 30}); err != nil {
		t.Fatal(err)
	}
	wantError(t, update(p.id, &runtimeapi.LinuxContainerResources{CpuShares: -1}), codes.InvalidArgument, "resources: cpu_shares")
	wantError(t, update("none", nil), codes.NotFound, "none")
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := n.StartDaemon(n.context()); err != nil {
		t.Fatal(err)
	}
	if o, r := shown(); o != 10 || r != 30 {
		t.Errorf("after an update and a restart %d and %d, want 10 and 30", o, r)
	}
}
