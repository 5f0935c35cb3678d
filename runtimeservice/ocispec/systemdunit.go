package ocispec

import (
	"maps"
	"math"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Annotations by which runc and crun set properties of the container's unit.
// Pods' own annotations never have such keys: see [NewAnnotationFilter].
const (
	swapProperty  = "org.systemd.property.MemorySwapMax"
	tasksProperty = "org.systemd.property.TasksMax"
)

// SetUnitProperties gives the container's unit, with the systemd driver, the
// limits that the OCI runtimes do not make properties of, so that systemd has
// others for them than the container. To be called whenever the spec's limits
// have been changed.
//
//   - "No swap" on version 2: runc 1.5 writes a swap limit of zero to the
//     cgroup's file alone, and systemctl daemon-reload would undo it.
//   - The number of tasks: a scope that asks for no limit gets the host's
//     DefaultTasksMax, 15 % of what the kernel allows.
func SetUnitProperties(n Node, s *specs.Spec) {
	if !n.Systemd {
		return
	}
	a := maps.Clone(s.Annotations)
	if a == nil {
		a = map[string]string{}
	}
	r := s.Linux.Resources
	delete(a, swapProperty)
	if m := r.Memory; n.Cgroup2 && m != nil && m.Limit != nil && m.Swap != nil && *m.Limit > 0 && *m.Swap == *m.Limit {
		a[swapProperty] = unitLimit(0)
	}
	tasks := uint64(math.MaxUint64)
	if limit, err := strconv.ParseUint(r.Unified["pids.max"], 10, 64); err == nil {
		tasks = limit
	}
	a[tasksProperty] = unitLimit(tasks)
	s.Annotations = a
}

// unitLimit is the text of a D-Bus value; the highest number means no limit.
func unitLimit(n uint64) string { return "uint64 " + strconv.FormatUint(n, 10) }

// unitProperty is whether the key is one that [SetUnitProperties] sets.
func unitProperty(n Node, key string) bool {
	return n.Systemd && (key == swapProperty || key == tasksProperty)
}
