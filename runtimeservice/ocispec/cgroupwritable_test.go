package ocispec

import (
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// TestCgroupWritable: only on version 2, where the container has a cgroup
// namespace, and only when the handler says so; /sys stays read-only.
func TestCgroupWritable(t *testing.T) {
	for _, tt := range []struct{ v2, asked, want bool }{{true, true, true}, {true, false, false}, {false, true, false}} {
		n := testNode()
		n.Cgroup2, n.CgroupWritable = tt.v2, tt.asked
		spec, _, err := Build(n, testPod(), testContainer())
		if err != nil {
			t.Fatal(err)
		}
		sys, _ := mountAt(spec, "/sys")
		cgroups, _ := mountAt(spec, "/sys/fs/cgroup")
		if !slices.Contains(sys.Options, "ro") || slices.Contains(cgroups.Options, "rw") != tt.want || slices.Contains(cgroups.Options, "ro") == tt.want {
			t.Errorf("%+v: /sys %q, /sys/fs/cgroup %q", tt, sys.Options, cgroups.Options)
		}
		if tt.want && !hasNamespace(spec, specs.CgroupNamespace) {
			t.Errorf("%+v: no cgroup namespace", tt)
		}
	}
}
