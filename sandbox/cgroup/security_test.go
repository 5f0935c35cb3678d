package cgroup

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestSecurity(t *testing.T) {
	// A file's name that leads elsewhere would be another cgroup's.
	t.Run("GHSA-5g49-rx9x-qfc6", func(t *testing.T) {
		g := openFixture(t)
		for _, key := range []string{"../../x/memory.max", "/abs", "a/b", "memory.max/x", "cgroup.procs", "memory..max", "memory.max\n"} {
			if err := g.Update(&specs.LinuxResources{Unified: map[string]string{key: "1"}}, nil); !errdefs.IsInvalidArgument(err) {
				t.Errorf("unified key %q: %v", key, err)
			}
		}
		for _, size := range []string{"../2MB", "2/MB", ""} {
			r := &specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: size}}}
			if err := g.Update(r, nil); !errdefs.IsInvalidArgument(err) {
				t.Errorf("page size %q: %v", size, err)
			}
		}
		for _, name := range []string{"../abc/memory.max", "../../x", "memory.max/../../x", "sub/memory.max"} {
			if _, err := g.file("memory", name); err == nil {
				t.Errorf("file %q is taken for one of the cgroup", name)
			}
		}
	})
}
