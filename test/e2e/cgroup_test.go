package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
)

// cgroup2 says which version of cgroups this machine has.
func cgroup2() bool { return exists("/sys/fs/cgroup/cgroup.controllers") }

// systemdDriver says that systemd makes the cgroups of this run.
func systemdDriver() bool { return os.Getenv("GANTRY_TEST_CGROUP_DRIVER") == "systemd" }

// ownCgroup gives the pod a cgroup to itself, as the kubelet does.
func ownCgroup(name string) func(*runtimeapi.PodSandboxConfig) {
	return func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = harness.CgroupParent(name) }
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func read(t testing.TB, path string) string {
	t.Helper()
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// cgroupPath is a file of the container's cgroup, by its name on version 1 or on version 2: whichever this machine has.
func (c *container) cgroupPath(v1, v2 string) string {
	c.t.Helper()
	pid := c.hostPID()
	controller, _, _ := strings.Cut(v1, ".")
	for line := range strings.Lines(read(c.t, "/proc/"+pid+"/cgroup")) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if cgroup2() && f[0] == "0" {
			return filepath.Join("/sys/fs/cgroup", f[2], v2)
		}
		if !cgroup2() && slices.Contains(strings.Split(f[1], ","), controller) {
			return filepath.Join("/sys/fs/cgroup", f[1], f[2], v1)
		}
	}
	c.t.Fatalf("process %s is in no cgroup of %s", pid, controller)
	return ""
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

// limit is a file of a cgroup and what it must hold, on version 1 and on version 2; "" is not looked at.
type limit struct{ v1, v2, want1, want2 string }

// The files of the limits that the CRI names.
func shares(s, weight string) limit { return limit{"cpu.shares", "cpu.weight", s, weight} }
func quota(q, max string) limit     { return limit{"cpu.cfs_quota_us", "cpu.max", q, max} }
func period(p string) limit         { return limit{"cpu.cfs_period_us", "", p, ""} }
func memory(limit1, max string) limit {
	return limit{"memory.limit_in_bytes", "memory.max", limit1, max}
}
func swap(memsw, max string) limit {
	return limit{"memory.memsw.limit_in_bytes", "memory.swap.max", memsw, max}
}
func cpus(list string) limit { return limit{"cpuset.cpus", "cpuset.cpus", list, list} }
func mems(list string) limit { return limit{"cpuset.mems", "cpuset.mems", list, list} }

// wantLimits reads the files from the host.
func (c *container) wantLimits(when string, limits ...limit) {
	c.t.Helper()
	for _, l := range limits {
		want := l.want1
		if cgroup2() {
			want = l.want2
		}
		if want == "" {
			continue
		}
		path := c.cgroupPath(l.v1, l.v2)
		if got := strings.TrimSpace(read(c.t, path)); got != want {
			c.t.Errorf("%s: %s is %q, want %q", when, path, got, want)
		}
	}
}

func readlink(t testing.TB, path string) string {
	t.Helper()
	target, err := os.Readlink(path)
	if err != nil {
		t.Fatal(err)
	}
	return target
}
