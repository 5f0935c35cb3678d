package e2e

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// metrics are series by name and labels: name{key=value,...}, the empty ones left out.
type metrics map[string]uint64

// described turns metrics into text with the keys of their descriptors, and requires that they fit.
func described(t *testing.T, keys map[string][]string, all []*runtimeapi.Metric) metrics {
	t.Helper()
	out := metrics{}
	for _, m := range all {
		k, ok := keys[m.GetName()]
		if !ok || len(k) != len(m.GetLabelValues()) {
			t.Errorf("%s has labels %q, its descriptor says %q", m.GetName(), m.GetLabelValues(), k)
			continue
		}
		var pairs []string
		for i, v := range m.GetLabelValues() {
			if v != "" {
				pairs = append(pairs, k[i]+"="+v)
			}
		}
		name := m.GetName() + "{" + strings.Join(pairs, ",") + "}"
		if _, twice := out[name]; twice {
			t.Errorf("%s is told twice", name)
		}
		out[name] = m.GetValue().GetValue()
	}
	return out
}

// one is the value of the only series of a name; with labels, of that which has all of them.
func (m metrics) one(t *testing.T, name string, labels ...string) uint64 {
	t.Helper()
	var found []string
	for series := range m {
		if strings.HasPrefix(series, name+"{") && !slices.ContainsFunc(labels, func(l string) bool { return !strings.Contains(series, l) }) {
			found = append(found, series)
		}
	}
	if len(found) != 1 {
		t.Errorf("%s %q: %q, want one series", name, labels, found)
		return 0
	}
	return m[found[0]]
}

func (n *node) metrics(t *testing.T) (pods, containers map[string]metrics) {
	t.Helper()
	descriptors, err := n.Runtime.ListMetricDescriptors(n.context(), &runtimeapi.ListMetricDescriptorsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string][]string{}
	for _, d := range descriptors.GetDescriptors() {
		if _, twice := keys[d.GetName()]; twice || d.GetHelp() == "" || !strings.HasPrefix(d.GetName(), "container_") {
			t.Errorf("descriptor %v", d)
		}
		keys[d.GetName()] = d.GetLabelKeys()
	}
	resp, err := n.Runtime.ListPodSandboxMetrics(n.context(), &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	pods, containers = map[string]metrics{}, map[string]metrics{}
	for _, p := range resp.GetPodMetrics() {
		pods[p.GetPodSandboxId()] = described(t, keys, p.GetMetrics())
		for _, c := range p.GetContainerMetrics() {
			containers[c.GetContainerId()] = described(t, keys, c.GetMetrics())
		}
	}
	return pods, containers
}

// What the metrics tell is what the kernel tells of a container that has worked, in cAdvisor's series and labels.
func TestMetrics(t *testing.T) {
	n := newNode(t)
	parent := func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = "/gantry-e2e/pod-metrics" }
	p := n.runPod("pod", parent)
	// It works until the kernel has counted a period of its quota.
	c := p.run("worker", "dd if=/dev/zero of=/big bs=1M count=8 2>/dev/null; "+
		"until cat /sys/fs/cgroup/cpu.stat /sys/fs/cgroup/cpu/cpu.stat 2>/dev/null | grep -q 'nr_periods [1-9]'; do i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done; done; touch /done; "+forever, func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuShares: 512, CpuQuota: 90000, CpuPeriod: 100000, MemoryLimitInBytes: 128 << 20}
	})
	idle := p.create("idle", forever)
	host := n.runPod("host", hostNetwork)
	n.eventually("the container has worked", func() bool {
		resp, err := c.execSync(10, "ls", "/done")
		return err == nil && resp.GetExitCode() == 0
	})
	// What is not on its way to the disk yet, not every file system counts: the next look, in ten seconds, finds it.
	n.eventually("the writable layer was measured with what was written", func() bool {
		_, all := n.metrics(t)
		for series, bytes := range all[c.id] {
			if strings.HasPrefix(series, "container_fs_usage_bytes") {
				return bytes >= 8<<20
			}
		}
		return false
	})
	pods, containers := n.metrics(t)
	got, pod := containers[c.id], pods[p.id]
	if len(pods) != 2 || len(containers) != 1 || containers[idle.id] != nil {
		t.Errorf("metrics of %d pods and containers %v", len(pods), slices.Collect(maps.Keys(containers)))
	}
	labels := fmt.Sprintf("{container=worker,id=/gantry-e2e/pod-metrics/%s,image=", c.id)
	for series := range got {
		if !strings.Contains(series, labels) || !strings.Contains(series, ",name="+c.id+",namespace=e2e,pod=pod") {
			t.Errorf("labels of %s", series)
		}
	}
	for name, want := range map[string][2]uint64{ // between the two
		"container_cpu_usage_seconds_total":         {0, 60},
		"container_start_time_seconds":              {uint64(c.status().GetStartedAt() / 1e9), uint64(c.status().GetStartedAt() / 1e9)},
		"container_memory_usage_bytes":              {8 << 20, 128 << 20}, // with what was written
		"container_memory_cache":                    {8 << 20, 128 << 20},
		"container_memory_rss":                      {1, 8 << 20},
		"container_memory_working_set_bytes":        {1, 128 << 20},
		"container_processes":                       {2, 3}, // the shell and its sleep; an exec that is ending
		"container_threads":                         {2, 3},
		"container_oom_events_total":                {0, 0},
		"container_cpu_cfs_periods_total":           {1, 1 << 30},
		"container_spec_cpu_shares":                 {512, 512},
		"container_spec_cpu_quota":                  {90000, 90000},
		"container_spec_cpu_period":                 {100000, 100000},
		"container_spec_memory_limit_bytes":         {128 << 20, 128 << 20},
		"container_spec_memory_swap_limit_bytes":    {0, 0},
		"container_fs_usage_bytes":                  {8 << 20, 9 << 20},
		"container_fs_limit_bytes":                  {8 << 20, 1 << 62},
		"container_memory_failcnt":                  {0, 0},
		"container_memory_max_usage_bytes":          {8 << 20, 128 << 20},
		"container_cpu_system_seconds_total":        {0, 60},
		"container_cpu_user_seconds_total":          {0, 60},
		"container_memory_mapped_file":              {0, 128 << 20},
		"container_cpu_cfs_throttled_periods_total": {0, 1 << 30},
	} {
		if v := got.one(t, name); v < want[0] || v > want[1] {
			t.Errorf("%s is %d, want between %d and %d", name, v, want[0], want[1])
		}
	}
	if n := got.one(t, "container_memory_failures_total", "failure_type=pgfault", "scope=container"); n == 0 {
		t.Error("no page faults")
	}
	if exists("/sys/fs/cgroup/cgroup.controllers") && exists("/proc/pressure/cpu") {
		got.one(t, "container_pressure_cpu_waiting_seconds_total")
	}
	// The pod's own have no container and no image, so that nothing is counted twice.
	for series := range pod {
		if strings.Contains(series, "container=") || strings.Contains(series, "image=") || !strings.Contains(series, "{id=/gantry-e2e/pod-metrics,") || !strings.Contains(series, "namespace=e2e,pod=pod") {
			t.Errorf("labels of %s", series)
		}
	}
	if pod.one(t, "container_memory_usage_bytes") < got.one(t, "container_memory_rss") {
		t.Error("the pod uses less than its container")
	}
	c.exec("ping", "-c", "1", "-W", "1", gateway(t, c))
	pods, _ = n.metrics(t)
	if n := pods[p.id].one(t, "container_network_transmit_packets_total", "interface=eth0"); n == 0 {
		t.Error("a pod that has sent a packet has sent none")
	}
	for series := range pods[host.id] {
		if strings.HasPrefix(series, "container_network") {
			t.Errorf("a pod on the host's network has %s", series)
		}
	}
	n.streamedMetrics(t, len(pods))
}

// streamedMetrics requires that the stream tells the pods that the list does.
func (n *node) streamedMetrics(t *testing.T, want int) {
	t.Helper()
	stream, err := n.Runtime.StreamPodSandboxMetrics(n.context(), &runtimeapi.StreamPodSandboxMetricsRequest{})
	got, _ := idsOf(t, stream, err, (*runtimeapi.StreamPodSandboxMetricsResponse).GetPodSandboxMetrics, (*runtimeapi.PodSandboxMetrics).GetPodSandboxId)
	if len(got) != want {
		t.Errorf("metrics of %d pods in the stream, want %d", len(got), want)
	}
}

// The descriptors never change, and reading metrics keeps no descriptors open.
func TestMetricsLeaveNothing(t *testing.T) {
	n := newNode(t)
	n.runPod("pod").run("c", forever)
	first, err := n.Runtime.ListMetricDescriptors(n.context(), &runtimeapi.ListMetricDescriptorsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	n.metrics(t)
	before := n.openFiles()
	for range 50 {
		n.metrics(t)
	}
	n.eventually("no more descriptors are open than after the first time", func() bool { return n.openFiles() <= before })
	if err := n.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	second, err := n.Runtime.ListMetricDescriptors(n.context(), &runtimeapi.ListMetricDescriptorsRequest{})
	if err != nil || !proto.Equal(first, second) {
		t.Errorf("other descriptors after a restart (%v)", err)
	}
}
