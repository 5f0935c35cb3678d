package ocispec

import (
	"maps"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestSetUnitProperties(t *testing.T) {
	const endless = "uint64 18446744073709551615"
	for _, tc := range []struct {
		systemd, cgroup2 bool
		limit, swap      int64
		pids             string
		wantSwap, tasks  string
	}{
		{true, true, 1 << 20, 1 << 20, "", "uint64 0", endless}, {true, true, 1 << 20, 2 << 20, "", "", endless},
		{true, true, -1, -1, "max", "", endless}, {true, true, 1 << 20, -1, "7", "", "uint64 7"},
		{true, false, 1 << 20, 1 << 20, "", "", endless}, {false, true, 1 << 20, 1 << 20, "7", "", ""},
	} {
		spec := &specs.Spec{Linux: &specs.Linux{Resources: &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &tc.limit, Swap: &tc.swap}}}}
		if tc.pids != "" {
			spec.Linux.Resources.Unified = map[string]string{"pids.max": tc.pids}
		}
		n := testNode()
		n.Systemd, n.Cgroup2 = tc.systemd, tc.cgroup2
		for range 2 { // the second time without limits
			SetUnitProperties(n, spec)
			if a := spec.Annotations; a[swapProperty] != tc.wantSwap || a[tasksProperty] != tc.tasks {
				t.Errorf("%+v: %q", tc, a)
			}
			if tc.tasks != "" {
				tc.tasks = endless
			}
			spec.Linux.Resources, tc.wantSwap = &specs.LinuxResources{}, ""
		}
	}
}

// TestUnitPropertiesAreAllowed is of the last check that Build makes: it lets these properties pass, of no pod and no
// other.
func TestUnitPropertiesAreAllowed(t *testing.T) {
	n, p, c := testNode(), testPod(), testContainer()
	n.Systemd, c.CgroupsPath = true, "a.slice:gantry:c"
	c.Config.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 1 << 20}
	asked := map[string]string{swapProperty: "uint64 7", tasksProperty: "uint64 7"}
	p.Config.Annotations, c.Config.Annotations = asked, asked
	spec, _, err := Build(n, p, c)
	if err != nil {
		t.Fatal(err)
	}
	if want := map[string]string{swapProperty: "uint64 0", tasksProperty: "uint64 18446744073709551615"}; !maps.Equal(spec.Annotations, want) {
		t.Errorf("annotations %q, want %q", spec.Annotations, want)
	}
	spec.Annotations["org.systemd.property.ExecStart"] = "x"
	if err := checkSpec(n, spec); err == nil {
		t.Error("another property passes")
	}
	n, c = testNode(), testContainer()
	if spec, _, err = Build(n, testPod(), c); err != nil || len(spec.Annotations) != 0 {
		t.Fatalf("without systemd: %v, %v", spec.Annotations, err)
	}
	spec.Annotations = map[string]string{tasksProperty: "uint64 1"}
	if err := checkSpec(n, spec); err == nil {
		t.Error("without systemd a unit's property passes")
	}
}
