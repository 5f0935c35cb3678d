package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
)

// OOMFile is the file in which the kernel counts the OOM kills of a cgroup, for
// [OOMKills]; "" where there is no memory controller. On version 2 the count
// is with the children's (memory.events), on version 1 without them
// (memory.oom_control).
func OOMFile(path string) string {
	t, err := host()
	if err != nil || checkPath(path) != nil {
		return ""
	}
	return t.oomFile(path)
}

func (t *tree) oomFile(path string) string {
	if t.version == V2 {
		return t.file("memory", path, "memory.events")
	}
	return t.file("memory", path, "memory.oom_control")
}

// OOMKills is how many processes the kernel has killed for want of memory, by
// the file of [OOMFile]. Once the cgroup is gone it is errdefs.ErrNotFound.
func OOMKills(file string) (uint64, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0, fmt.Errorf("reading OOM kills: %w", gone(err))
	}
	var kills uint64
	eachKey(data, func(key []byte, n uint64) {
		if string(key) == "oom_kill" {
			kills = n
		}
	})
	return kills, nil
}

// HasSwap reports whether swap is accounted for, so that it can be limited.
func HasSwap() bool {
	t, err := host()
	return err == nil && t.hasSwap()
}

func (t *tree) hasSwap() bool {
	if t.version == V1 {
		_, err := os.Lstat(t.file("memory", "/", "memory.memsw.limit_in_bytes"))
		return err == nil
	}
	// The root has no memory.swap.max. Any child that has the controller tells;
	// before the first container there may be none, so one is made.
	if found, err := filepath.Glob(filepath.Join(t.hierarchies[0].root, "*", "memory.swap.max")); err == nil && len(found) > 0 {
		return true
	}
	const probe = "/gantry-probe"
	if err := t.mkdirIn(t.hierarchies[0], probe); err != nil {
		return false
	}
	_, err := os.Lstat(t.file("memory", probe, "memory.swap.max"))
	_ = t.removeEmpty(probe) // what a crash leaves, the next start removes
	return err == nil
}

// ProcsFiles are the cgroup.procs files of a cgroup, one for each hierarchy,
// also those without a controller: OCI runtimes make the cgroup in all of them.
// Each lists its processes, not those of children.
func ProcsFiles(path string) []string {
	t, err := host()
	if err != nil || checkPath(path) != nil {
		return nil
	}
	var out []string
	for _, h := range t.hierarchies {
		out = append(out, filepath.Join(h.root, path, "cgroup.procs"))
	}
	return out
}
