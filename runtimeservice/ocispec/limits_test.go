package ocispec

import (
	"errors"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestCgroupsPath(t *testing.T) {
	for _, tc := range []struct {
		systemd          bool
		parent, id, want string // want "" is an error
	}{
		{false, "", "c1", "/gantry/c1"},
		{false, "/kubepods/burstable/pod1", "c1", "/kubepods/burstable/pod1/c1"},
		{false, "kubepods/", "c1", "/kubepods/c1"},
		{false, "/kubepods.slice/kubepods-pod1.slice", "c1", ""},
		{false, "/a/../../b", "c1", ""},
		{false, "..", "c1", ""},
		{false, "/", "c1", ""},
		{false, "/a//b", "c1", ""},
		{false, "/a/./b", "c1", ""},
		{false, "/a\nb", "c1", ""},
		{false, "/a b", "c1", ""},
		{false, "/a:b", "c1", ""},
		{false, "/a\x00", "c1", ""},
		{false, "/ä", "c1", ""},
		{false, "/" + strings.Repeat("a", 256), "c1", ""},
		{false, strings.Repeat("/a", 2000), "c1", ""},
		{false, "/a", "../c1", ""},
		{false, "/a", "", ""},
		{false, "/a", "-c", ""},
		{true, "", "c1", "system.slice:gantry:c1"},
		{true, "kubepods-burstable-pod1_2.slice", "c1", "kubepods-burstable-pod1_2.slice:gantry:c1"},
		{true, "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice", "c1", "kubepods-burstable-pod1.slice:gantry:c1"},
		{true, "/kubepods.slice/other-pod1.slice", "c1", ""},
		{true, "/kubepods.slice/kubepods-a-b.slice", "c1", ""},
		{true, "/kubepods/pod1", "c1", ""},
		{true, "-.slice", "c1", ""},
		{true, "a-.slice", "c1", ""},
		{true, "a--b.slice", "c1", ""},
		{true, ".slice", "c1", ""},
		{true, "a:b.slice", "c1", ""},
		{true, "a.slice\n", "c1", ""},
		{true, `a\x2db.slice`, "c1", ""},
		{true, "../a.slice", "c1", ""},
	} {
		got, err := CgroupsPath(Node{Systemd: tc.systemd}, tc.parent, tc.id)
		if got != tc.want || (err == nil) != (tc.want != "") || err != nil && !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("systemd %v, parent %q, id %q: %q, %v; want %q", tc.systemd, tc.parent, tc.id, got, err, tc.want)
		}
	}
}

func FuzzCgroupsPath(f *testing.F) {
	for _, s := range []string{"/kubepods/pod1", "a-b.slice", "/a.slice/a-b.slice", "../x", "/a\n", "a:b"} {
		f.Add(s, "c1")
	}
	f.Fuzz(func(t *testing.T, parent, id string) {
		if p, err := CgroupsPath(Node{}, parent, id); err == nil {
			if p != path.Clean(p) || !path.IsAbs(p) || path.Base(p) != id || path.Dir(p) == "/" || strings.ContainsAny(p, ":\n\x00 ") {
				t.Fatalf("parent %q, id %q: %q", parent, id, p)
			}
		}
		if p, err := CgroupsPath(Node{Systemd: true}, parent, id); err == nil {
			f := strings.Split(p, ":")
			if len(f) != 3 || !strings.HasSuffix(f[0], ".slice") || f[1] != "gantry" || f[2] != id || strings.ContainsAny(p, "/\n\x00 ") {
				t.Fatalf("parent %q, id %q: %q", parent, id, p)
			}
		}
	})
}

func TestResources(t *testing.T) {
	type r = runtimeapi.LinuxContainerResources
	full := testNode()
	v1 := Node{}
	for _, tc := range []struct {
		name  string
		n     Node
		in    *r
		check func(*specs.LinuxResources) bool
		kind  error
		word  string
	}{
		{name: "nil", n: full, check: func(s *specs.LinuxResources) bool { return s.CPU == nil && s.Memory == nil }},
		{name: "zero is unset", n: full, in: &r{}, check: func(s *specs.LinuxResources) bool {
			return s.CPU == nil && s.Memory == nil && s.Unified == nil && s.Pids == nil
		}},
		{name: "shares 1 are 2", n: full, in: &r{CpuShares: 1}, check: func(s *specs.LinuxResources) bool { return *s.CPU.Shares == 2 }},
		{name: "no quota", n: full, in: &r{CpuQuota: -1}, check: func(s *specs.LinuxResources) bool { return *s.CPU.Quota == -1 }},
		{name: "no swap beyond memory", n: full, in: &r{MemoryLimitInBytes: 1 << 20}, check: func(s *specs.LinuxResources) bool {
			return *s.Memory.Limit == 1<<20 && *s.Memory.Swap == 1<<20
		}},
		{name: "no swap accounting", n: v1, in: &r{MemoryLimitInBytes: 1 << 20, MemorySwapLimitInBytes: 1 << 20}, check: func(s *specs.LinuxResources) bool {
			return *s.Memory.Limit == 1<<20 && s.Memory.Swap == nil
		}},
		{name: "no memory limit", n: full, in: &r{MemoryLimitInBytes: -1}, check: func(s *specs.LinuxResources) bool { return *s.Memory.Limit == -1 }},
		{name: "huge pages without controller", n: v1, in: &r{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "64KB"}}}, check: func(s *specs.LinuxResources) bool { return s.HugepageLimits == nil }},
		{name: "cpusets", n: full, in: &r{CpusetCpus: "0,2-5,8191", CpusetMems: "1"}, check: func(s *specs.LinuxResources) bool { return s.CPU.Cpus == "0,2-5,8191" }},
		{name: "unified", n: full, in: &r{Unified: map[string]string{"io.max": "8:0 rbps=1048576", "hugetlb.2MB.max": "0"}}, check: func(s *specs.LinuxResources) bool { return len(s.Unified) == 2 }},

		{name: "shares", n: full, in: &r{CpuShares: -1}, kind: errdefs.ErrInvalidArgument, word: "cpu_shares"},
		{name: "shares", n: full, in: &r{CpuShares: 262145}, kind: errdefs.ErrInvalidArgument, word: "cpu_shares"},
		{name: "quota", n: full, in: &r{CpuQuota: 999}, kind: errdefs.ErrInvalidArgument, word: "cpu_quota"},
		{name: "period", n: full, in: &r{CpuPeriod: 1000001}, kind: errdefs.ErrInvalidArgument, word: "cpu_period"},
		{name: "memory", n: full, in: &r{MemoryLimitInBytes: -2}, kind: errdefs.ErrInvalidArgument, word: "memory_limit"},
		{name: "swap below memory", n: full, in: &r{MemoryLimitInBytes: 2, MemorySwapLimitInBytes: 1}, kind: errdefs.ErrInvalidArgument, word: "memory_swap"},
		{name: "swap without memory", n: full, in: &r{MemorySwapLimitInBytes: 1}, kind: errdefs.ErrInvalidArgument, word: "memory_swap"},
		{name: "swap without accounting", n: v1, in: &r{MemoryLimitInBytes: 1, MemorySwapLimitInBytes: 2}, kind: errdefs.ErrFailedPrecondition, word: "memory_swap"},
		{name: "page size", n: full, in: &r{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "../2MB"}}}, kind: errdefs.ErrInvalidArgument, word: "hugepage_limits"},
		{name: "unified without controller", n: Node{Cgroup2: true}, in: &r{Unified: map[string]string{"pids.max": "1"}}, kind: errdefs.ErrFailedPrecondition, word: "no pids controller"},
		{name: "unified on v1", n: v1, in: &r{Unified: map[string]string{"memory.min": "1"}}, kind: errdefs.ErrFailedPrecondition, word: "unified"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Resources(tc.n, tc.in)
			if tc.kind != nil {
				if !errors.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.word) {
					t.Errorf("error %v, want %v with %q", err, tc.kind, tc.word)
				}
				return
			}
			if err != nil || !tc.check(got) {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
}

func FuzzUnified(f *testing.F) {
	for _, s := range []string{"memory.max", "../memory.max", "cgroup.procs", "hugetlb.2MB.max", "a.b\n"} {
		f.Add(s, "1")
	}
	f.Fuzz(func(t *testing.T, key, value string) {
		got, err := unified(testNode(), map[string]string{key: value})
		if err != nil {
			return
		}
		if len(got) != 1 || got[key] != value || strings.ContainsAny(key, "/\n\x00 ") || strings.Contains(key, "..") || strings.HasPrefix(key, "cgroup.") || strings.ContainsAny(value, "\n\x00") {
			t.Fatalf("%q = %q", key, value)
		}
	})
}

func TestSysctls(t *testing.T) {
	for _, tc := range []struct {
		name, value      string
		hostNet, hostIPC bool
		ok               bool
	}{
		{"net.ipv4.ip_local_port_range", "1024 65000", false, false, true},
		{"net.ipv4.conf.eth-0.forwarding", "1", false, false, true},
		{"net.ipv4.tcp_congestion_control", "bbr", false, true, true},
		{"net.ipv4.ip_local_reserved_ports", "", false, false, true},
		{"net.ipv4.tcp_rmem", "4096\t87380\t6291456", false, false, true},
		{"kernel.shm_rmid_forced", "1", false, false, true},
		{"kernel.msgmax", "65536", true, false, true},
		{"kernel.sem", "250 32000 100 128", false, false, true},
		{"fs.mqueue.msg_max", "100", false, false, true},
		{"kernel.domainname", "example.org", false, false, true},
		{"net/ipv4/conf/eth0.100/forwarding", "1", false, false, true},
		{"net.ipv4.conf.eth0/100.forwarding", "1", false, false, true},
		{"kernel/shm_rmid_forced", "1", false, false, true},

		{"net.ipv4.ip_forward", "1", true, false, false},    // CVE-2022-0532
		{"kernel.shm_rmid_forced", "1", false, true, false}, // GHSA-w2j5-3rcx-vx7x
		{"fs.mqueue.msg_max", "1", false, true, false},
		{"kernel.domainname", "x", true, false, false},
		{"kernel.hostname", "x", false, false, false},
		{"kernel.core_pattern", "|/x", false, false, false},
		{"kernel.shmevil", "1", false, false, false},
		{"vm.swappiness", "1", false, false, false},
		{"fs.file-max", "1", false, false, false},
		{"net.ipv4.x", "1024 65000+kernel.core_pattern=|/x", false, false, false}, // CVE-2022-0811
		{"net.ipv4.x", "1\nkernel.core_pattern=x", false, false, false},
		{"net.ipv4.x", "1\x00", false, false, false},
		{"net.ipv4.x", strings.Repeat("1", 5000), false, false, false},
		{"net.ipv4.x=1+y", "1", false, false, false},
		{"net/ipv4/ip_forward", "1", true, false, false},
		{"kernel/shm_rmid_forced", "1", false, true, false},
		{"kernel/core_pattern", "x", false, false, false},
		{"net/../kernel/core_pattern", "1", false, false, false},
		{"net/ipv4/./x", "1", false, false, false},
		{"net/ipv4/.x", "1", false, false, false},
		{"net//x", "1", false, false, false},
		{"/net/ipv4/x", "1", false, false, false},
		{"net.ipv4.conf.a/../b", "1", false, false, false},
		{"net.ipv4/../../kernel/core_pattern", "1", false, false, false},
		{"net..ipv4", "1", false, false, false},
		{"net.ipv4.x ", "1", false, false, false},
		{"net.ipv4.x\n", "1", false, false, false},
		{"net.", "1", false, false, false},
		{"net", "1", false, false, false},
		{"", "1", false, false, false},
	} {
		_, err := Sysctls(map[string]string{tc.name: tc.value}, tc.hostNet, tc.hostIPC)
		if (err == nil) != tc.ok || err != nil && !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%q = %.40q, host network %v, host IPC %v: %v", tc.name, tc.value, tc.hostNet, tc.hostIPC, err)
		}
	}
}

// Both ways of writing a name are the same file, and only one value can be meant.
func TestSysctlNames(t *testing.T) {
	for name, want := range map[string]string{
		"net.ipv4.ip_forward": "net/ipv4/ip_forward", "net/ipv4/ip_forward": "net/ipv4/ip_forward",
		"net.ipv4.conf.eth0/100.forwarding": "net/ipv4/conf/eth0.100/forwarding", "net/ipv4/conf/eth0.100/forwarding": "net/ipv4/conf/eth0.100/forwarding",
	} {
		files, err := Sysctls(map[string]string{name: "1"}, false, false)
		if _, ok := files[want]; err != nil || !ok || len(files) != 1 {
			t.Errorf("%s: %v, %v; want %s", name, files, err, want)
		}
	}
	if _, err := Sysctls(map[string]string{"net.ipv4.ip_forward": "0", "net/ipv4/ip_forward": "1"}, false, false); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("one sysctl by two names: %v", err)
	}
}

func FuzzSysctls(f *testing.F) {
	f.Add("net.ipv4.ip_forward", "1")
	f.Add("net.ipv4/../x", "1+kernel.core_pattern=x")
	f.Fuzz(func(t *testing.T, name, value string) {
		files, err := Sysctls(map[string]string{name: value}, false, false)
		if err != nil {
			return
		}
		file := ""
		for f := range files {
			file = path.Join("/proc/sys", f)
		}
		_, err = Sysctls(map[string]string{name: value}, true, true)
		if !slices.ContainsFunc([]string{"/proc/sys/net/", "/proc/sys/kernel/", "/proc/sys/fs/mqueue/"}, func(p string) bool { return strings.HasPrefix(file, p) }) ||
			strings.ContainsAny(name+value, "+=\n\x00") || err == nil {
			t.Fatalf("%q = %q", name, value)
		}
	})
}

func TestDefaultRlimits(t *testing.T) {
	got := DefaultRlimits([]specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 512}, {Type: "RLIMIT_NPROC", Soft: 1, Hard: unlimited}})
	for _, l := range got {
		switch {
		case l.Type == "RLIMIT_NOFILE" && (l.Soft != 512 || l.Hard != 512),
			l.Type == "RLIMIT_NPROC" && l.Hard != unlimited,
			l.Soft > l.Hard:
			t.Errorf("%+v", l)
		}
	}
	if defaultRlimits[9].Hard != 524288 {
		t.Errorf("the defaults were changed: %+v", defaultRlimits[9])
	}
}
