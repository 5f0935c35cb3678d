package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// realGroup makes a cgroup with a process in it on this machine's hierarchies;
// both are gone, and nothing is left, when the test ends.
func realGroup(t *testing.T) (*Group, string) {
	t.Helper()
	if os.Geteuid() != 0 {
		skip(t, "making cgroups needs root")
	}
	if _, err := Detect(); err != nil {
		skip(t, "no cgroups: %v", err)
	}
	parent := fmt.Sprintf("/gantry-test-%d", os.Getpid())
	path := parent + "/" + strings.ToLower(t.Name())
	created, err := MkdirParents(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, p := range slices.Backward(created) {
			if err := RemoveEmpty(p); err != nil {
				t.Error(err)
			}
			if Exists(p) {
				t.Errorf("cgroup %s is left behind", p)
			}
		}
	})
	g, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Kill(); err != nil {
			t.Error(err)
		}
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g, path
}

// skip skips, but never silently in CI.
func skip(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("CI must be able to run this: "+format, args...)
	}
	t.Skipf(format, args...)
}

// start runs a shell script in the cgroup.
func start(t *testing.T, path, script string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", "read go; "+script)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for _, file := range ProcsFiles(path) {
		err := writeFile(file, fmt.Sprint(cmd.Process.Pid))
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // named hierarchies are not made
			t.Fatal(err)
		}
	}
	if _, err := in.Write([]byte("go\n")); err != nil {
		t.Fatal(err)
	}
	return cmd
}

func TestRealStats(t *testing.T) {
	g, path := realGroup(t)
	limit := int64(64 << 20)
	if err := g.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}, nil); err != nil {
		t.Fatal(err)
	}
	cmd := start(t, path, "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done; read wait; read for; read ever; sleep 1000")
	pids, err := g.Procs()
	if err != nil || !slices.Equal(pids, []int{cmd.Process.Pid}) {
		t.Fatalf("processes %v (%v), want %d", pids, err, cmd.Process.Pid)
	}
	var s Stats
	for s.CPUNanos == 0 || s.Mem.PageFaults == 0 { // they are charged in batches
		if s, err = g.Stats(); err != nil {
			t.Fatal(err)
		}
	}
	if s.At.IsZero() || s.Mem.Limit != uint64(limit) || s.Pids != 1 || s.Mem.WorkingSet > s.Mem.Usage {
		t.Errorf("unlikely stats: %+v", s)
	}
	if n, err := OOMKills(OOMFile(path)); n != 0 || err != nil {
		t.Errorf("OOM kills: %d, %v", n, err)
	}
	if err := RemoveEmpty(path); err != nil || !Exists(path) {
		t.Errorf("a cgroup in use: %v, exists %v; want it left alone", err, Exists(path))
	}
}

func TestRealKillAndGone(t *testing.T) {
	g, path := realGroup(t)
	cmd := start(t, path, "sleep 1000 & sleep 1000 & (sleep 1000 & wait) & wait")
	_ = cmd
	for n := 0; n < 5; {
		pids, err := g.Procs()
		if err != nil {
			t.Fatal(err)
		}
		n = len(pids)
	}
	killed := make(chan error, 1)
	go func() { killed <- g.Kill() }()
	_ = cmd.Wait() // Kill waits until its zombie is reaped
	if err := <-killed; err != nil {
		t.Fatal(err)
	}
	if pids, err := g.Procs(); len(pids) != 0 || err != nil {
		t.Errorf("after Kill: %v, %v", pids, err)
	}
	for range 2 { // the second finds nothing
		if err := RemoveEmpty(path); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := g.Stats(); !errdefs.IsNotFound(err) {
		t.Errorf("Stats of a removed cgroup: %v, want not found", err)
	}
	if err := g.Update(&specs.LinuxResources{}, nil); !errdefs.IsNotFound(err) {
		t.Errorf("Update of a removed cgroup: %v, want not found", err)
	}
	if err := g.Kill(); err != nil {
		t.Errorf("Kill of a removed cgroup: %v, want nil", err)
	}
	if _, err := Open(path); !errdefs.IsNotFound(err) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open of a removed cgroup: %v, want not found", err)
	}
	if _, err := OOMKills(OOMFile(path)); !errdefs.IsNotFound(err) {
		t.Errorf("OOMKills of a removed cgroup: %v, want not found", err)
	}
}

func TestRealUpdateV1(t *testing.T) {
	if v, err := Detect(); err == nil && v == V2 {
		t.Skip("this machine has cgroup v2, whose files TestRealUpdateV2 changes")
	}
	g, _ := realGroup(t)
	ptr := func(n int64) *int64 { return &n }
	uptr := func(n uint64) *uint64 { return &n }
	swap := HasSwap()
	files := []string{
		"memory/memory.limit_in_bytes", "cpu/cpu.shares", "cpu/cpu.cfs_quota_us",
		"cpu/cpu.cfs_period_us", "cpuset/cpuset.cpus", "pids/pids.max",
	}
	if swap {
		files = append(files, "memory/memory.memsw.limit_in_bytes")
	}
	state := func() map[string]string {
		m := map[string]string{}
		for _, f := range files {
			controller, name, _ := strings.Cut(f, "/")
			v, err := g.read(controller, name)
			if err != nil {
				t.Fatal(err)
			}
			m[name] = v
		}
		return m
	}
	first := &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: ptr(64 << 20), Swap: ptr(64 << 20)},
		CPU:    &specs.LinuxCPU{Shares: uptr(512), Quota: ptr(50000), Period: uptr(100000), Cpus: "0"},
		Pids:   &specs.LinuxPids{Limit: ptr(77)},
	}
	want := map[string]string{
		"memory.limit_in_bytes": "67108864", "cpu.shares": "512",
		"cpu.cfs_quota_us": "50000", "cpu.cfs_period_us": "100000", "cpuset.cpus": "0", "pids.max": "77",
	}
	if swap {
		want["memory.memsw.limit_in_bytes"] = "67108864"
	}
	for _, step := range []struct {
		name   string
		r      *specs.LinuxResources
		change map[string]string
		kind   func(error) bool // nil = no error
	}{
		{"set", first, nil, nil},
		{"again", first, nil, nil},
		{"nothing", &specs.LinuxResources{}, nil, nil},
		{"grow memory, keep the swap", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(128 << 20)}},
			map[string]string{"memory.limit_in_bytes": "134217728", "memory.memsw.limit_in_bytes": "134217728"}, nil},
		{"grow both", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(256 << 20), Swap: ptr(300 << 20)}},
			map[string]string{"memory.limit_in_bytes": "268435456", "memory.memsw.limit_in_bytes": "314572800"}, nil},
		{"shrink both", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(32 << 20), Swap: ptr(32 << 20)}},
			map[string]string{"memory.limit_in_bytes": "33554432", "memory.memsw.limit_in_bytes": "33554432"}, nil},
		{"smaller period", &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(5000), Period: uptr(10000)}},
			map[string]string{"cpu.cfs_quota_us": "5000", "cpu.cfs_period_us": "10000"}, nil},
		{"no CPU limit", &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(-1)}},
			map[string]string{"cpu.cfs_quota_us": "-1"}, nil},
		{"undone when the kernel refuses the last", &specs.LinuxResources{
			Memory: &specs.LinuxMemory{Limit: ptr(512 << 20), Swap: ptr(512 << 20)},
			CPU:    &specs.LinuxCPU{Shares: uptr(2048), Quota: ptr(2000), Period: uptr(20000), Cpus: "4000"},
		}, nil, func(err error) bool { return err != nil }},
		{"swap below memory", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(512 << 20), Swap: ptr(1 << 20)}}, nil, errdefs.IsInvalidArgument},
		{"not changeable", &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: uptr(99), Idle: ptr(1)}}, nil, errdefs.IsInvalidArgument},
		{"unified", &specs.LinuxResources{Unified: map[string]string{"memory.high": "1"}}, nil, errdefs.IsInvalidArgument},
		{"bad cpuset", &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: uptr(99), Cpus: "0\n1"}}, nil, errdefs.IsInvalidArgument},
	} {
		err := g.Update(step.r, nil)
		if step.kind == nil && err != nil || step.kind != nil && !step.kind(err) {
			t.Errorf("%s: error %v", step.name, err)
		}
		for k, v := range step.change {
			if _, there := want[k]; there {
				want[k] = v
			}
		}
		if diff := cmp.Diff(want, state()); diff != "" {
			t.Fatalf("%s: (-want +got)\n%s", step.name, diff)
		}
	}
}

func TestRealUpdateV2(t *testing.T) {
	if v, err := Detect(); err == nil && v == V1 {
		t.Skip("this machine has cgroup v1, whose files TestRealUpdateV1 changes")
	}
	g, _ := realGroup(t)
	if !HasSwap() {
		t.Error("the kernel does not account for swap")
	}
	want := map[string]string{}
	commits := 0
	refused := errors.New("refused")
	for _, step := range []struct {
		name   string
		r      *specs.LinuxResources
		commit error
		change map[string]string
		kind   func(error) bool // nil = no error
	}{
		{"set", &specs.LinuxResources{
			Memory: &specs.LinuxMemory{Limit: new(int64(64 << 20)), Swap: new(int64(64 << 20))},
			CPU:    &specs.LinuxCPU{Shares: new(uint64(512)), Quota: new(int64(50000)), Period: new(uint64(100000)), Cpus: "0"},
			Pids:   &specs.LinuxPids{Limit: new(int64(77))},
		}, nil, map[string]string{"memory.max": "67108864", "memory.swap.max": "0", "cpu.weight": "59", "cpu.max": "50000 100000",
			"cpuset.cpus": "0", "pids.max": "77", "memory.high": "max", "memory.oom.group": "0"}, nil},
		{"grow memory, keep the swap", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: new(int64(128 << 20))}}, nil,
			map[string]string{"memory.max": "134217728"}, nil},
		{"grow both", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: new(int64(256 << 20)), Swap: new(int64(300 << 20))}}, nil,
			map[string]string{"memory.max": "268435456", "memory.swap.max": "46137344"}, nil},
		{"no CPU limit", &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: new(int64(-1))}}, nil, map[string]string{"cpu.max": "max 100000"}, nil},
		{"unified", &specs.LinuxResources{Unified: map[string]string{"memory.high": "1048576", "memory.oom.group": "1"}}, nil,
			map[string]string{"memory.high": "1048576", "memory.oom.group": "1"}, nil},
		{"undone when the kernel refuses the last", &specs.LinuxResources{
			Memory: &specs.LinuxMemory{Limit: new(int64(512 << 20)), Swap: new(int64(512 << 20))},
			CPU:    &specs.LinuxCPU{Shares: new(uint64(2048)), Quota: new(int64(2000)), Cpus: "4000"},
		}, nil, nil, func(err error) bool { return err != nil }},
		{"undone when commit fails", &specs.LinuxResources{
			Memory:  &specs.LinuxMemory{Limit: new(int64(32 << 20)), Swap: new(int64(32 << 20))},
			Unified: map[string]string{"memory.high": "2097152"},
		}, refused, nil, func(err error) bool { return errors.Is(err, refused) }},
		{"swap below memory", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: new(int64(2)), Swap: new(int64(1))}}, nil, nil, errdefs.IsInvalidArgument},
	} {
		err := g.Update(step.r, func() error { commits++; return step.commit })
		if step.kind == nil && err != nil || step.kind != nil && !step.kind(err) {
			t.Errorf("%s: error %v", step.name, err)
		}
		maps.Copy(want, step.change)
		for name, value := range want {
			controller, _, _ := strings.Cut(name, ".")
			if got, err := g.read(controller, name); got != value || err != nil {
				t.Errorf("%s: %s is %q (%v), want %q", step.name, name, got, err, value)
			}
		}
	}
	if commits != 6 { // not for the two that are refused before
		t.Errorf("%d commits, want 6", commits)
	}
}

func TestRealMkdirParents(t *testing.T) {
	_, path := realGroup(t)
	deep := path + "/a/b"
	missing, err := Missing(deep)
	if err != nil {
		t.Fatal(err)
	}
	created, err := MkdirParents(deep)
	if want := []string{path + "/a", deep}; err != nil || !slices.Equal(created, want) || !slices.Equal(missing, want) {
		t.Fatalf("created %v, missing %v, want %v (%v)", created, missing, want, err)
	}
	if again, err := MkdirParents(deep); err != nil || len(again) != 0 {
		t.Errorf("the second time: %v, %v", again, err)
	}
	tr, err := host()
	if err != nil {
		t.Fatal(err)
	}
	cpus, err := os.ReadFile(tr.file("cpuset", deep, "cpuset.cpus"))
	if err != nil || tr.version == V1 && strings.TrimSpace(string(cpus)) == "" { // version 2 inherits it unseen
		t.Errorf("cpuset.cpus is %q (%v), want the parent's", cpus, err)
	}
	if err := RemoveEmpty(path + "/a"); err != nil || !Exists(path+"/a") {
		t.Errorf("a cgroup with a child: %v, exists %v; want it left alone", err, Exists(path+"/a"))
	}
	for _, p := range slices.Backward(created) {
		if err := RemoveEmpty(p); err != nil || Exists(p) {
			t.Errorf("removing %s: %v, exists %v", p, err, Exists(p))
		}
	}
}

func TestPathsAreChecked(t *testing.T) {
	for _, path := range []string{"", "/", "a", "/a/../b", "/a/", "//a", "/a\nb", "/a\x00b", "/..", "/a/."} {
		if err := checkPath(path); !errdefs.IsInvalidArgument(err) {
			t.Errorf("checkPath(%q) = %v, want invalid argument", path, err)
		}
		if err := RemoveEmpty(path); err == nil {
			t.Errorf("RemoveEmpty(%q) succeeds", path)
		}
	}
}

// fixture is a copy of testdata/v2 as a tree, with one cgroup, /pods/abc.
func fixture(t *testing.T) *tree {
	t.Helper()
	root := t.TempDir()
	if err := os.CopyFS(root, os.DirFS("testdata/v2")); err != nil {
		t.Fatal(err)
	}
	tr, err := unifiedTree(root)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func openFixture(t *testing.T) *Group {
	t.Helper()
	g, err := fixture(t).open("/pods/abc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	return g
}

func TestStatsV2(t *testing.T) {
	g := openFixture(t)
	want := Stats{
		CPUNanos: 5023117000,
		Mem:      Memory{Usage: 10485760, WorkingSet: 5242880, RSS: 4194304, PageFaults: 1234, MajorPageFaults: 5, Limit: 104857600, Cache: 6000000, ActiveFile: 757120, InactiveFile: 5242880},
		Swap:     Swap{Accounted: true, Usage: 4096},
		Pids:     3,
		CPUPSI: &Pressure{
			Some: Stall{Avg10: 1.5, Avg60: 0.25, Total: 123456},
			Full: Stall{Avg10: 0.5, Total: 654},
		},
		MemoryPSI: &Pressure{Some: Stall{Total: 1}},
		IOPSI:     &Pressure{Some: Stall{Avg300: 12.34, Total: 99}, Full: Stall{Avg300: 1, Total: 77}},
	}
	for range 2 { // the same descriptors again
		got, err := g.Stats()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(Stats{}, "At")); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	}
	if n, err := OOMKills(g.t.oomFile(g.path)); n != 2 || err != nil {
		t.Errorf("OOM kills: %d (%v), want 2", n, err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Stats(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Stats after Close: %v, want os.ErrClosed", err)
	}
}

// An inactive_file above the usage, and files that the kernel does not have.
func TestStatsV2Sparse(t *testing.T) {
	tr := fixture(t)
	dir := filepath.Join(tr.hierarchies[0].root, "pods/abc")
	if err := os.WriteFile(filepath.Join(dir, "memory.current"), []byte("1000\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"cpu.pressure", "memory.pressure", "io.pressure", "memory.swap.current", "memory.swap.max"} {
		if err := os.Remove(filepath.Join(dir, f)); err != nil {
			t.Fatal(err)
		}
	}
	g, err := tr.open("/pods/abc")
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	s, err := g.Stats()
	if err != nil || s.Mem.WorkingSet != 0 || s.CPUPSI != nil || s.MemoryPSI != nil || s.IOPSI != nil || s.Swap != (Swap{}) {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestPlanV2(t *testing.T) {
	ptr := func(n int64) *int64 { return &n }
	uptr := func(n uint64) *uint64 { return &n }
	for _, tt := range []struct {
		name string
		r    specs.LinuxResources
		want []string
		kind func(error) bool
	}{
		{"all", specs.LinuxResources{
			Memory:         &specs.LinuxMemory{Limit: ptr(10000000), Swap: ptr(10000500)},
			CPU:            &specs.LinuxCPU{Shares: uptr(1024), Quota: ptr(5000), Cpus: "0", Mems: "0"},
			Pids:           &specs.LinuxPids{Limit: ptr(-1)},
			HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 0}},
			Unified:        map[string]string{"memory.low": "5", "memory.high": "9"},
		}, []string{
			"memory.max=10000000", "memory.swap.max=500", "cpu.weight=100", "cpu.max=5000 100000", "cpuset.cpus=0", "cpuset.mems=0",
			"pids.max=max", "hugetlb.2MB.max=0", "hugetlb.2MB.rsvd.max=0", "memory.high=9", "memory.low=5",
		}, nil},
		{"period alone", specs.LinuxResources{CPU: &specs.LinuxCPU{Period: uptr(20000)}}, []string{"cpu.max=max 20000"}, nil},
		{"swap of the present limit", specs.LinuxResources{Memory: &specs.LinuxMemory{Swap: ptr(104857601)}}, []string{"memory.swap.max=1"}, nil},
		{"no limits", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(-1), Swap: ptr(-1)}}, []string{"memory.max=max", "memory.swap.max=max"}, nil},
		{"swap limit without memory limit", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(-1), Swap: ptr(5)}}, nil, errdefs.IsInvalidArgument},
		{"below usage", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(1000)}}, nil, errdefs.IsFailedPrecondition},
		{"other cgroup's file", specs.LinuxResources{Unified: map[string]string{"../../x/memory.max": "1"}}, nil, errdefs.IsInvalidArgument},
		{"absolute file", specs.LinuxResources{Unified: map[string]string{"/etc/passwd": "1"}}, nil, errdefs.IsInvalidArgument},
		{"two lines", specs.LinuxResources{Unified: map[string]string{"memory.max": "1\n2"}}, nil, errdefs.IsInvalidArgument},
		{"steering file", specs.LinuxResources{Unified: map[string]string{"cgroup.procs": "1"}}, nil, errdefs.IsInvalidArgument},
		{"page size", specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2/MB"}}}, nil, errdefs.IsInvalidArgument},
		{"block IO", specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{}}, nil, errdefs.IsInvalidArgument},
	} {
		t.Run(tt.name, func(t *testing.T) {
			changes, err := openFixture(t).plan(&tt.r)
			if tt.kind == nil && err != nil || tt.kind != nil && !tt.kind(err) {
				t.Fatalf("error %v", err)
			}
			var got []string
			for _, c := range changes {
				got = append(got, c.file+"="+c.value)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestUpdateV2IsUndone(t *testing.T) {
	g := openFixture(t)
	before, err := g.read("memory", "memory.max")
	if err != nil {
		t.Fatal(err)
	}
	limit := int64(1 << 30)
	err = g.Update(&specs.LinuxResources{
		Memory:  &specs.LinuxMemory{Limit: &limit},
		Unified: map[string]string{"memory.nosuchfile": "1"},
	}, nil)
	if !errdefs.IsNotFound(err) {
		t.Errorf("error %v, want not found", err)
	}
	// A plain file keeps the tail of a longer value, which a cgroup file does not.
	if after, _ := g.read("memory", "memory.max"); !strings.HasPrefix(after, before) {
		t.Errorf("memory.max is %q, want %q again", after, before)
	}
}

func TestWeight(t *testing.T) {
	for shares, want := range map[uint64]uint64{0: 1, 2: 1, 1024: 100, 262144: 10000, 1 << 40: 10000} {
		if got := weight(shares); got != want {
			t.Errorf("weight(%d) = %d, want %d", shares, got, want)
		}
	}
}

func TestMissingV2(t *testing.T) {
	tr := fixture(t)
	got, err := tr.missing("/pods/new/deep")
	if want := []string{"/pods/new", "/pods/new/deep"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v (%v), want %v", got, err, want)
	}
}
