package e2e

import (
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
)

// TestResources reads what became of every field of LinuxContainerResources in the container's cgroup.
func TestResources(t *testing.T) {
	n := newNode(t)
	p := n.runPod("pod", ownCgroup("resources"))
	const mib = 1 << 20
	none := "9223372036854771712" // no limit, on version 1
	for _, c := range []struct {
		name string
		r    *runtimeapi.LinuxContainerResources
		want []limit
	}{
		{"nothing", &runtimeapi.LinuxContainerResources{}, []limit{memory(none, "max"), swap(none, "max"), quota("-1", "max 100000"),
			{"pids.max", "pids.max", "max", "max"}}},
		{"cpu", &runtimeapi.LinuxContainerResources{CpuShares: 512, CpuQuota: 50000, CpuPeriod: 200000},
			[]limit{shares("512", "59"), quota("50000", "50000 200000"), period("200000")}},
		{"fewest-shares", &runtimeapi.LinuxContainerResources{CpuShares: 2, CpuQuota: -1}, []limit{shares("2", "1"), quota("-1", "max 100000")}},
		{"cpuset", &runtimeapi.LinuxContainerResources{CpusetCpus: "0", CpusetMems: "0"}, []limit{cpus("0"), mems("0")}},
		{"memory-without-swap", &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 * mib},
			[]limit{memory("67108864", "67108864"), swap("67108864", "0")}},
		{"memory-equal-swap", &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 * mib, MemorySwapLimitInBytes: 64 * mib},
			[]limit{memory("67108864", "67108864"), swap("67108864", "0")}},
		{"memory-and-swap", &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 * mib, MemorySwapLimitInBytes: 96 * mib},
			[]limit{memory("67108864", "67108864"), swap("100663296", "33554432")}},
		{"endless-swap", &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 * mib, MemorySwapLimitInBytes: -1},
			[]limit{memory("67108864", "67108864"), swap(none, "max")}},
		// The kubelet sends every size that it knows; the kernel may have a controller for them or not.
		{"no-huge-pages", &runtimeapi.LinuxContainerResources{HugepageLimits: hugePages(t)},
			[]limit{{"", "hugetlb.2MB.max", "", "0"}}},
		{"unified", &runtimeapi.LinuxContainerResources{Unified: map[string]string{"memory.high": "50331648", "memory.oom.group": "1", "io.weight": "default 50"}},
			[]limit{{"", "memory.high", "", "50331648"}, {"", "memory.oom.group", "", "1"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := p.containerConfig(c.name, forever)
			config.Linux.Resources = c.r
			id, err := p.tryCreate(config)
			if len(c.r.GetUnified()) > 0 && !cgroup2() {
				wantError(t, err, codes.FailedPrecondition, "unified", "cgroup v1")
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			ctr := &container{pod: p, name: c.name, id: id}
			ctr.start()
			ctr.wantLimits(c.name, c.want...)
			if !strings.Contains(ctr.cgroupPath("memory.stat", "memory.stat"), harness.CgroupParent("resources")+"/") {
				t.Errorf("%s is not below the pod's cgroup", ctr.cgroupPath("memory.stat", "memory.stat"))
			}
			ctr.stop(0)
			ctr.remove()
		})
	}
	c := p.run("oom-score", forever, func(c *runtimeapi.ContainerConfig) { c.Linux.Resources.OomScoreAdj = 900 })
	if got := strings.TrimSpace(read(t, "/proc/"+c.hostPID()+"/oom_score_adj")); got != "900" {
		t.Errorf("oom_score_adj %s, want 900", got)
	}
}

// hugePages is a limit of zero for every size of huge pages that the kernel has.
func hugePages(t *testing.T) (limits []*runtimeapi.HugepageLimit) {
	t.Helper()
	sizes, err := filepath.Glob("/sys/kernel/mm/hugepages/hugepages-*kB")
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range sizes {
		switch strings.TrimPrefix(filepath.Base(size), "hugepages-") {
		case "2048kB":
			limits = append(limits, &runtimeapi.HugepageLimit{PageSize: "2MB"})
		case "1048576kB":
			limits = append(limits, &runtimeapi.HugepageLimit{PageSize: "1GB"})
		}
	}
	return limits
}

// TestCgroupParent is of parents that the driver does not take.
func TestCgroupParent(t *testing.T) {
	n := newNode(t)
	wrong := []string{"..", "/a/../b", "/", "/a\nb", "/a:b"}
	if systemdDriver() {
		wrong = append(wrong, "/kubepods/pod1", "a-.slice", "-a.slice", "a--b.slice", "/b.slice/a-b.slice")
	} else {
		wrong = append(wrong, "kubepods-pod1.slice", "/kubepods.slice/kubepods-pod1.slice")
	}
	for _, parent := range wrong {
		_, err := n.Runtime.RunPodSandbox(n.context(), &runtimeapi.RunPodSandboxRequest{
			Config: n.podConfig("pod", func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = parent })})
		wantError(t, err, codes.InvalidArgument, "cgroup_parent")
	}
	resp, err := n.Runtime.RuntimeConfig(n.context(), &runtimeapi.RuntimeConfigRequest{})
	want := runtimeapi.CgroupDriver_CGROUPFS
	if systemdDriver() {
		want = runtimeapi.CgroupDriver_SYSTEMD
	}
	if err != nil || resp.GetLinux() == nil || resp.GetLinux().GetCgroupDriver() != want {
		t.Errorf("RuntimeConfig says %v, %v; want %v", resp, err, want)
	}
}
