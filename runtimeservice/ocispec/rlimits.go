package ocispec

import (
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

const unlimited = ^uint64(0)

// defaultRlimits are what containers got in practice from a runtime started by
// systemd: no limit but on descriptors (1024 soft, so that select(2) is safe,
// and 524288 hard for programs that know better), locked memory, message
// queues, and none of the privileges of RTPRIO and NICE. SIGPENDING is left
// out: its default follows the memory of the machine.
var defaultRlimits = []specs.POSIXRlimit{
	{Type: "RLIMIT_AS", Soft: unlimited, Hard: unlimited},
	{Type: "RLIMIT_CORE", Soft: unlimited, Hard: unlimited},
	{Type: "RLIMIT_CPU", Soft: unlimited, Hard: unlimited},
	{Type: "RLIMIT_DATA", Soft: unlimited, Hard: unlimited},
	{Type: "RLIMIT_FSIZE", Soft: unlimited, Hard: unlimited},
	{Type: "RLIMIT_LOCKS", Soft: unlimited, Hard: unlimited},
	{Type: "RLIMIT_MEMLOCK", Soft: 8 << 20, Hard: 8 << 20},
	{Type: "RLIMIT_MSGQUEUE", Soft: 819200, Hard: 819200},
	{Type: "RLIMIT_NICE", Soft: 0, Hard: 0},
	{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 524288},
	{Type: "RLIMIT_NPROC", Soft: unlimited, Hard: unlimited},
	{Type: "RLIMIT_RSS", Soft: unlimited, Hard: unlimited},
	{Type: "RLIMIT_RTPRIO", Soft: 0, Hard: 0},
	{Type: "RLIMIT_RTTIME", Soft: unlimited, Hard: unlimited},
	{Type: "RLIMIT_STACK", Soft: 8 << 20, Hard: unlimited},
}

// DefaultRlimits are the limits that every container process gets, lowered to
// the hard limits in ceiling. Without CAP_SYS_RESOURCE the daemon passes its
// own limits as ceiling, for it cannot give more than it has (setrlimit(2));
// with it, nil.
func DefaultRlimits(ceiling []specs.POSIXRlimit) []specs.POSIXRlimit {
	limits := slices.Clone(defaultRlimits)
	for i, l := range limits {
		for _, c := range ceiling {
			if c.Type == l.Type {
				limits[i].Hard = min(l.Hard, c.Hard)
				limits[i].Soft = min(l.Soft, limits[i].Hard)
			}
		}
	}
	return limits
}

func rlimits(n Node) []specs.POSIXRlimit {
	if n.Rlimits == nil {
		return DefaultRlimits(nil)
	}
	return slices.Clone(n.Rlimits)
}
