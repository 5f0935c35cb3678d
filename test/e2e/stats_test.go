package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// wantPressure requires pressure figures where the kernel has them.
func wantPressure(t *testing.T, s *runtimeapi.ContainerStats) {
	t.Helper()
	all := map[string]*runtimeapi.PsiStats{"cpu": s.GetCpu().GetPsi(), "memory": s.GetMemory().GetPsi(), "io": s.GetIo().GetPsi()}
	has := cgroup2() && exists("/proc/pressure/cpu")
	for name, psi := range all {
		if has != (psi.GetSome() != nil && psi.GetFull() != nil) {
			t.Errorf("%s pressure %v, the kernel has it: %v", name, psi, has)
		}
	}
	if has && (s.GetCpu().GetPsi().GetSome().GetTotal() == 0 || s.GetCpu().GetPsi().GetSome().GetTotal()%1000 != 0 || s.GetIo().GetTimestamp() == 0) {
		t.Errorf("pressure %v, want nanoseconds", all)
	}
}

// swapAccounted says whether the kernel counts swap, as every one that tests run on does on version 2.
func swapAccounted() bool {
	return cgroup2() || exists("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes")
}

func (n *node) podStats(id string) *runtimeapi.PodSandboxStats {
	n.t.Helper()
	resp, err := n.Runtime.PodSandboxStats(n.context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: id})
	if err != nil {
		n.t.Fatal(err)
	}
	return resp.GetStats()
}

func TestContainerStats(t *testing.T) {
	n := newNode(t)
	p := n.runPod("pod")
	c := p.run("c", "i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done; head -c 3000000 /dev/zero > /filled; "+forever)
	created := p.create("created", forever)
	var s *runtimeapi.ContainerStats
	n.eventually("the figures show the container's work", func() bool {
		resp, err := n.Runtime.ContainerStats(n.context(), &runtimeapi.ContainerStatsRequest{ContainerId: c.id})
		if err != nil {
			t.Fatal(err)
		}
		s = resp.GetStats()
		return s.GetCpu().GetUsageCoreNanoSeconds().GetValue() > 1e6 && s.GetMemory().GetWorkingSetBytes().GetValue() > 0 &&
			s.GetWritableLayer().GetUsedBytes().GetValue() >= 3000000
	})
	if s.GetAttributes().GetId() != c.id || s.GetAttributes().GetMetadata().GetName() != "c" || s.GetAttributes().GetLabels()["container"] != "c" {
		t.Errorf("attributes: %v", s.GetAttributes())
	}
	if s.GetMemory().GetAvailableBytes() != nil || s.GetSwap().GetSwapAvailableBytes() != nil {
		t.Errorf("without limits, %v and %v are available", s.GetMemory().GetAvailableBytes(), s.GetSwap().GetSwapAvailableBytes())
	}
	wantPressure(t, s)
	limitedOne := p.run("limited", "while :; do :; done", limited)
	n.eventually("there is a rate", func() bool {
		resp, err := n.Runtime.ContainerStats(n.context(), &runtimeapi.ContainerStatsRequest{ContainerId: limitedOne.id})
		if err != nil {
			t.Fatal(err)
		}
		s = resp.GetStats()
		return s.GetCpu().GetUsageNanoCores().GetValue() > 0
	})
	if m := s.GetMemory(); m.GetAvailableBytes().GetValue()+m.GetWorkingSetBytes().GetValue() != 20<<20 {
		t.Errorf("memory %v, of 20 MiB", m)
	}
	if w := s.GetSwap(); swapAccounted() && (w.GetTimestamp() == 0 || w.GetSwapUsageBytes() == nil || w.GetSwapAvailableBytes() == nil || w.GetSwapAvailableBytes().GetValue() != 0) {
		t.Errorf("swap %v, of none", w)
	}
	limitedOne.remove()
	resp, err := n.Runtime.ListContainerStats(n.context(), &runtimeapi.ListContainerStatsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{}
	for _, s := range resp.GetStats() {
		ids[s.GetAttributes().GetId()] = true
	}
	if len(ids) != 2 || !ids[c.id] || !ids[created.id] {
		t.Errorf("listed %v, want %s and %s", ids, c.id, created.id)
	}
	resp, err = n.Runtime.ListContainerStats(n.context(), &runtimeapi.ListContainerStatsRequest{Filter: &runtimeapi.ContainerStatsFilter{LabelSelector: map[string]string{"container": "created"}}})
	if err != nil || len(resp.GetStats()) != 1 {
		t.Errorf("listed by label: %v, %v", resp.GetStats(), err)
	}
}

func TestPodSandboxStats(t *testing.T) {
	n := newNode(t)
	p := n.runPod("pod", ownCgroup("stats"))
	peer := n.runPod("peer")
	const work = "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done; "
	c := p.run("c", work+"sleep 1000 & "+forever)
	p.run("other", work+forever)
	p.create("created", forever)
	peer.run("c", "mkdir /www; head -c 200000 /dev/zero > /www/file; httpd -p 80 -h /www; "+forever)
	// What the pod receives from its peer is more than 200,000 bytes; it answers with less.
	c.eventually("the peer answers", func() bool {
		resp, err := c.execSync(10, "sh", "-c", "wget -q -O - http://"+peer.status().GetNetwork().GetIp()+"/file | wc -c")
		return err == nil && strings.TrimSpace(string(resp.GetStdout())) == "200000"
	})
	s := n.podStats(p.id)
	linux := s.GetLinux()
	if a := s.GetAttributes(); a.GetId() != p.id || a.GetMetadata().GetUid() != "uid-pod" || a.GetLabels()["app"] != "pod" || a.GetAnnotations()["e2e/note"] != "kept" {
		t.Errorf("attributes %v", a)
	}
	var names []string
	var cpu, memory uint64
	for _, c := range linux.GetContainers() {
		names = append(names, c.GetAttributes().GetMetadata().GetName())
		cpu += c.GetCpu().GetUsageCoreNanoSeconds().GetValue()
		memory += c.GetMemory().GetUsageBytes().GetValue()
	}
	if !slices.Equal(names, []string{"c", "other", "created"}) {
		t.Errorf("containers %v", names)
	}
	// The pod was read after its containers: it has used no less than they. Memory may be given back meanwhile.
	if got := linux.GetCpu().GetUsageCoreNanoSeconds().GetValue(); got < cpu || cpu == 0 {
		t.Errorf("the pod has used %d ns of CPU, its containers %d", got, cpu)
	}
	if got := linux.GetMemory(); got.GetUsageBytes().GetValue() < memory/2 || memory == 0 || got.GetWorkingSetBytes().GetValue() == 0 {
		t.Errorf("the pod uses %v of memory, its containers %d bytes", got, memory)
	}
	if got := linux.GetProcess().GetProcessCount().GetValue(); got < 4 { // two shells, each with a sleep, and another
		t.Errorf("%d processes", got)
	}
	eth := linux.GetNetwork().GetDefaultInterface()
	if linux.GetNetwork().GetTimestamp() == 0 || eth.GetName() != "eth0" || eth.GetRxBytes().GetValue() < 200000 ||
		eth.GetTxBytes().GetValue() == 0 || eth.GetTxBytes().GetValue() >= 200000 {
		t.Errorf("network %v", linux.GetNetwork())
	}

	// A pod without a cgroup of its own is the sum of its containers.
	if linux := n.podStats(peer.id).GetLinux(); linux.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || linux.GetProcess().GetProcessCount().GetValue() < 2 {
		t.Errorf("a pod without cgroup_parent: %v", linux)
	}
	// The counters are the kernel's: they go on over a restart of the daemon.
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := n.StartDaemon(n.context()); err != nil {
		t.Fatal(err)
	}
	after := n.podStats(p.id).GetLinux()
	if after.GetCpu().GetUsageCoreNanoSeconds().GetValue() < linux.GetCpu().GetUsageCoreNanoSeconds().GetValue() ||
		after.GetNetwork().GetDefaultInterface().GetRxBytes().GetValue() < eth.GetRxBytes().GetValue() || len(after.GetContainers()) != 3 {
		t.Errorf("after a restart %v, before %v", after, linux)
	}
}

func TestListPodSandboxStats(t *testing.T) {
	n := newNode(t)
	a, b := n.runPod("a"), n.runPod("b", hostNetwork)
	stopped := n.runPod("stopped")
	if _, err := n.Runtime.StopPodSandbox(n.context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: stopped.id}); err != nil {
		t.Fatal(err)
	}
	list := func(f *runtimeapi.PodSandboxStatsFilter) (ids []string) {
		t.Helper()
		resp, err := n.Runtime.ListPodSandboxStats(n.context(), &runtimeapi.ListPodSandboxStatsRequest{Filter: f})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range resp.GetStats() {
			ids = append(ids, s.GetAttributes().GetId())
		}
		return ids
	}
	for _, c := range []struct {
		name   string
		filter *runtimeapi.PodSandboxStatsFilter
		want   []string
	}{
		{"all", nil, []string{a.id, b.id}},
		{"id", &runtimeapi.PodSandboxStatsFilter{Id: a.id}, []string{a.id}},
		{"id prefix", &runtimeapi.PodSandboxStatsFilter{Id: b.id[:20]}, []string{b.id}},
		{"unknown id", &runtimeapi.PodSandboxStatsFilter{Id: "none"}, nil},
		{"label", &runtimeapi.PodSandboxStatsFilter{LabelSelector: map[string]string{"app": "b"}}, []string{b.id}},
		{"id and label of another", &runtimeapi.PodSandboxStatsFilter{Id: a.id, LabelSelector: map[string]string{"app": "b"}}, nil},
	} {
		if got := list(c.filter); !slices.Equal(got, c.want) {
			t.Errorf("%s: listed %v, want %v", c.name, got, c.want)
		}
	}
	if net := n.podStats(b.id).GetLinux().GetNetwork(); net != nil {
		t.Errorf("a pod on the host's network has %v, which is the node's", net)
	}
	s := n.podStats(stopped.id).GetLinux()
	if s.GetCpu().GetUsageCoreNanoSeconds().GetValue() != 0 || s.GetNetwork() != nil || s.GetCpu().GetTimestamp() == 0 {
		t.Errorf("a stopped pod uses %v", s)
	}
	_, err := n.Runtime.PodSandboxStats(n.context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: "none"})
	wantError(t, err, codes.NotFound, "none")
}

// BenchmarkListPodSandboxStats is the request that the kubelet makes every ten seconds, with the gRPC call around it.
func BenchmarkListPodSandboxStats(b *testing.B) {
	n := newNode(b)
	const pods = 40
	for i := range pods {
		name := fmt.Sprint("pod", i)
		n.runPod(name, ownCgroup(name)).run("c", forever)
	}
	b.Run("pods=40", func(b *testing.B) {
		for b.Loop() {
			resp, err := n.Runtime.ListPodSandboxStats(b.Context(), &runtimeapi.ListPodSandboxStatsRequest{})
			if err != nil || len(resp.GetStats()) != pods || len(resp.GetStats()[7].GetLinux().GetContainers()) != 1 {
				b.Fatal(err, len(resp.GetStats()))
			}
		}
	})
	b.Run("containers=40", func(b *testing.B) {
		for b.Loop() {
			if _, err := n.Runtime.ListContainerStats(b.Context(), &runtimeapi.ListContainerStatsRequest{}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
