package ocispec

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestSecurityCgroups is of requests that would reach other cgroups than the container's, or cost more than they say.
func TestSecurityCgroups(t *testing.T) {
	refused := func(t *testing.T, what string, r *runtimeapi.LinuxContainerResources) {
		t.Helper()
		if _, err := Resources(testNode(), r); !errors.Is(err, errdefs.ErrInvalidArgument) || len(err.Error()) > 1024 {
			t.Errorf("%.40q: %.200v", what, err)
		}
	}
	t.Run("CVE-2018-20699", func(t *testing.T) {
		for _, list := range []string{"0-4294967295", "0-65535", "8192", "3-1", "a", "-1", "1-", ",", "0,", " 0", "0-1-2", strings.Repeat("0,", 1<<20) + "0"} {
			refused(t, list, &runtimeapi.LinuxContainerResources{CpusetCpus: list})
			refused(t, list, &runtimeapi.LinuxContainerResources{CpusetMems: list})
		}
	})
	t.Run("GHSA-5g49-rx9x-qfc6", func(t *testing.T) {
		for _, key := range []string{"", "memory", "../../x/memory.max", "memory/../../x/memory.max", "/abs", "a/b", "memory.max/x", "memory.../max",
			"cgroup.procs", "cgroup.kill", "memory..max", "memory.max\n", "Memory.max", "irq.pressure", "memory.max x", "memory." + strings.Repeat("x", 200)} {
			refused(t, key, &runtimeapi.LinuxContainerResources{Unified: map[string]string{key: "1"}})
		}
	})
	t.Run("2.6-unified-values", func(t *testing.T) {
		for _, value := range []string{"1\n2", "1\r", "\x00", "ä", strings.Repeat("x", 4097)} {
			refused(t, value, &runtimeapi.LinuxContainerResources{Unified: map[string]string{"memory.max": value}})
		}
	})
	t.Run("2.6-hugepage-names", func(t *testing.T) {
		for _, size := range []string{"", "2/MB", "../2MB", "2MB/../x", "2MB\n", "2mb", "2M", "0MB", "-2MB", "2.0MB", "12345GB", strings.Repeat("2", 1<<16) + "MB"} {
			refused(t, size, &runtimeapi.LinuxContainerResources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: size, Limit: 1}}})
		}
	})
	t.Run("2.6-oom-score", func(t *testing.T) {
		n := testNode()
		n.MinOOMScoreAdj = -500
		for asked, want := range map[int64]int{-1000: -500, -999: -500, -500: -500, 0: 0, 1000: 1000} {
			if got, err := OOMScoreAdj(n, &runtimeapi.LinuxContainerResources{OomScoreAdj: asked}); got != want || err != nil {
				t.Errorf("%d becomes %d, %v; want %d", asked, got, err, want)
			}
		}
		for _, asked := range []int64{-1001, 1001, 1 << 40} {
			if _, err := OOMScoreAdj(n, &runtimeapi.LinuxContainerResources{OomScoreAdj: asked}); !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("%d: %v", asked, err)
			}
		}
	})
	t.Run("2.6-cgroup-parent", func(t *testing.T) {
		cgroupfs, systemd := testNode(), testNode()
		cgroupfs.Systemd, systemd.Systemd = false, true
		for _, parent := range []string{"..", "/..", "a/../../b", "/kubepods/./pod", "/", "//", "a\nb", "a b", "a:b", "a\x00", "ä", `a\b`, strings.Repeat("a/", 2000),
			"/" + strings.Repeat("a", 256)} {
			for _, n := range []Node{cgroupfs, systemd} {
				if got, err := CgroupsPath(n, parent, "id"); !errors.Is(err, errdefs.ErrInvalidArgument) {
					t.Errorf("parent %.40q, systemd %v: %q, %.200v", parent, n.Systemd, got, err)
				}
			}
		}
		for _, parent := range []string{"-.slice", "a--b.slice", "a-.slice", "-a.slice", "a.scope", "a.slice.slice/x", ".slice", "/system.slice/kubepods.slice", "a.slice:x:y", "a\n.slice"} {
			if got, err := CgroupsPath(systemd, parent, "id"); !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("slice %q: %q, %v", parent, got, err)
			}
		}
	})
	t.Run("CVE-2023-25809", func(t *testing.T) {
		n := testNode()
		n.Cgroup2 = true
		spec, _, err := Build(n, testPod(), testContainer())
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.CgroupNamespace && ns.Path == "" }) {
			t.Errorf("no cgroup namespace of its own: %v", spec.Linux.Namespaces)
		}
		for _, m := range spec.Mounts {
			if m.Destination == "/sys/fs/cgroup" && !slices.Contains(m.Options, "ro") {
				t.Errorf("mounted with %v", m.Options)
			}
		}
	})
}
