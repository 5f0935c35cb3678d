package kubelet

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func init() {
	cases["limits and their cgroups"] = limits
	cases["out of memory"] = outOfMemory
	cases["stats and metrics"] = stats
}

// limits: what the spec asks for is in the container's cgroup, below the pod's of its class.
func limits(t *testing.T, n *node) {
	guaranteed := n.run(t, "guaranteed", `
containers:
- {name: a, image: BUSYBOX, resources: {limits: {cpu: 250m, memory: 64Mi}}, command: [sleep, "1000"]}
terminationGracePeriodSeconds: 1
`)
	burstable := n.run(t, "burstable", `
resources: {limits: {memory: 256Mi}}
containers:
- {name: a, image: BUSYBOX, resources: {requests: {cpu: 100m, memory: 16Mi}}, command: [sleep, "1000"]}
terminationGracePeriodSeconds: 1
`)
	for _, c := range []struct {
		pod                *pod
		class, parent, oom string
		v1, v2             map[string]string
	}{
		{guaranteed, "Guaranteed", "kubepods", lowest(t, "-997"),
			map[string]string{"cpu/cpu.cfs_quota_us": "25000", "cpu/cpu.shares": "256", "memory/memory.limit_in_bytes": "67108864"},
			map[string]string{"cpu.max": "25000 100000", "memory.max": "67108864"}},
		{burstable, "Burstable", "kubepods/burstable", "",
			map[string]string{"cpu/cpu.shares": "102", "../memory/memory.limit_in_bytes": "268435456"},
			map[string]string{"cpu.max": "max 100000", "../memory.max": "268435456"}},
	} {
		s := c.pod.untilReady()
		if s.QOSClass != c.class {
			t.Errorf("pod %s is of class %s, want %s", c.pod.name, s.QOSClass, c.class)
		}
		o, err := c.pod.object()
		if err != nil {
			t.Fatal(err)
		}
		group := filepath.Join(c.parent, "pod"+o.Metadata.UID, strings.TrimPrefix(s.container("a").ContainerID, "gantry://"))
		want, path := c.v2, func(file string) string { return filepath.Join("/sys/fs/cgroup", group, file) }
		if v1 := cgroupV1(t); v1 {
			want, path = c.v1, func(file string) string {
				up := strings.HasPrefix(file, "../")
				controller, file, _ := strings.Cut(strings.TrimPrefix(file, "../"), "/")
				if up {
					return filepath.Join("/sys/fs/cgroup", controller, filepath.Dir(group), file)
				}
				return filepath.Join("/sys/fs/cgroup", controller, group, file)
			}
		}
		for file, value := range want {
			if got, err := os.ReadFile(path(file)); err != nil || strings.TrimSpace(string(got)) != value {
				t.Errorf("pod %s: %s is %q, %v; want %s", c.pod.name, file, got, err, value)
			}
		}
		if got := strings.TrimSpace(c.pod.exec("a", "cat", "/proc/1/oom_score_adj")); c.oom != "" && got != c.oom {
			t.Errorf("pod %s: oom_score_adj is %s, want %s", c.pod.name, got, c.oom)
		}
	}
}

// lowest is the wanted oom_score_adj, or the test's own where the machine does not let anyone lower it.
func lowest(t testing.TB, want string) string {
	t.Helper()
	const file = "/proc/self/oom_score_adj"
	own, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(want), 0); err != nil {
		return strings.TrimSpace(string(own))
	}
	if err := os.WriteFile(file, own, 0); err != nil {
		t.Fatal(err)
	}
	return want
}

func cgroupV1(t testing.TB) bool {
	t.Helper()
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return err != nil
}

// outOfMemory: the kernel's killer is told from a kill, in the first process and in one beside it that ends the first.
func outOfMemory(t *testing.T, n *node) {
	p := n.run(t, "oom", `
restartPolicy: Never
containers:
- {name: eats, image: BUSYBOX, resources: {limits: {memory: 24Mi}}, command: [sh, -c, "exec tail /dev/zero"]}
- {name: killed, image: BUSYBOX, resources: {limits: {memory: 24Mi}}, command: [sh, -c, "kill -9 $$$$; sh -c 'kill -9 $PPID' & exec sleep 1; exit 1"]}
`)
	s := p.untilDone("Failed")
	if got := s.container("eats").State.Terminated; got.ExitCode != 137 || got.Reason != "OOMKilled" {
		t.Errorf("a container beyond its limit ended %d %s, want 137 OOMKilled", got.ExitCode, got.Reason)
	}
	if got := s.container("killed").State.Terminated; got.Reason == "OOMKilled" {
		t.Errorf("a container that was not out of memory ended %d %s", got.ExitCode, got.Reason)
	}
	restarts := n.run(t, "oomagain", `
containers:
- {name: eats, image: BUSYBOX, resources: {limits: {memory: 24Mi}}, command: [sh, -c, "exec tail /dev/zero"]}
`)
	got := restarts.until("restarted", func(s podStatus) bool {
		return s.container("eats").RestartCount > 0 && s.container("eats").LastState.Terminated != nil
	})
	if last := got.container("eats").LastState.Terminated; last.ExitCode != 137 || last.Reason != "OOMKilled" {
		t.Errorf("before the restart: %d %s, want 137 OOMKilled", last.ExitCode, last.Reason)
	}
}

type summary struct {
	Node struct {
		Runtime struct {
			ImageFs struct{ UsedBytes, CapacityBytes uint64 }
		}
	}
	Pods []struct {
		PodRef     struct{ Name string }
		Containers []struct {
			Name   string
			CPU    struct{ UsageCoreNanoSeconds uint64 }
			Memory struct{ WorkingSetBytes uint64 }
			Rootfs struct{ UsedBytes, CapacityBytes uint64 }
		}
		Network struct {
			Interfaces []struct {
				Name             string
				RxBytes, TxBytes uint64
			}
		}
		CPU    struct{ UsageCoreNanoSeconds uint64 }
		Memory struct{ WorkingSetBytes uint64 }
		Volume []struct {
			Name      string
			UsedBytes uint64
		}
	}
}

// stats: the summary that a cluster's autoscaler and eviction live on.
func stats(t *testing.T, n *node) {
	p := n.run(t, "stats", `
volumes: [{name: v, emptyDir: {}}]
containers:
- name: a
  image: BUSYBOX
  command: [sh, -c, "head -c 3000000 /dev/zero >/written; head -c 2000000 /dev/zero >/v/f; while :; do :; done"]
  resources: {limits: {cpu: 50m}}
  volumeMounts: [{name: v, mountPath: /v}]
terminationGracePeriodSeconds: 1
`)
	p.untilReady()
	eventually(t, "the summary has the pod's figures", func() error {
		var s summary
		if err := p.getJSON("/stats/summary", &s); err != nil {
			return err
		}
		if s.Node.Runtime.ImageFs.UsedBytes == 0 || s.Node.Runtime.ImageFs.CapacityBytes == 0 {
			return fmt.Errorf("no figures of the images' file system: %+v", s.Node.Runtime.ImageFs)
		}
		for _, got := range s.Pods {
			if got.PodRef.Name != p.fullName() {
				continue
			}
			if len(got.Containers) != 1 || len(got.Volume) != 1 {
				return fmt.Errorf("%+v", got)
			}
			c := got.Containers[0]
			if c.Name != "a" || c.CPU.UsageCoreNanoSeconds == 0 || c.Memory.WorkingSetBytes == 0 || c.Rootfs.UsedBytes < 3000000 ||
				c.Rootfs.CapacityBytes == 0 || got.CPU.UsageCoreNanoSeconds == 0 || got.Memory.WorkingSetBytes == 0 || got.Volume[0].UsedBytes < 2000000 {
				return fmt.Errorf("%+v", got)
			}
			return nil
		}
		return fmt.Errorf("no pod %s among %d", p.fullName(), len(s.Pods))
	})
	eventually(t, "the metrics have the container", func() error {
		body, err := p.get("/metrics/resource")
		if err == nil && !strings.Contains(body, fmt.Sprintf(`container_cpu_usage_seconds_total{container="a",namespace="default",pod="%s"}`, p.fullName())) {
			err = fmt.Errorf("no CPU time in /metrics/resource")
		}
		return err
	})
}
