package ocispec

import "github.com/opencontainers/runtime-spec/specs-go"

// swapProperty is the annotation by which runc and crun set a property of the
// container's unit.
const swapProperty = "org.systemd.property.MemorySwapMax"

// SetSystemdSwap makes "no swap" a property of the container's unit, on version
// 2 with the systemd driver. The OCI runtimes make properties of all limits,
// but not of a swap limit of zero (runc 1.5): that they write to the cgroup's
// file alone, and systemctl daemon-reload would undo it. To be called whenever
// the spec's limits have been changed.
func SetSystemdSwap(n Node, s *specs.Spec) {
	m := s.Linux.Resources.Memory
	none := n.Systemd && n.Cgroup2 && m != nil && m.Limit != nil && m.Swap != nil && *m.Limit > 0 && *m.Swap == *m.Limit
	if !none {
		delete(s.Annotations, swapProperty)
		return
	}
	if s.Annotations == nil {
		s.Annotations = map[string]string{}
	}
	s.Annotations[swapProperty] = "uint64 0"
}
