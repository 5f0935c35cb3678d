package ocispec

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Bounds of the kernel and of the OCI runtimes.
const (
	minCPUShares, maxCPUShares = 2, 262144
	minCPUQuota                = 1000 // µs
	minCPUPeriod, maxCPUPeriod = 1000, 1000000
	maxCPUs                    = 8192 // CONFIG_NR_CPUS of distribution kernels
)

var pageSize = regexp.MustCompile(`^[1-9][0-9]{0,3}[KMG]B$`)

// Resources are the cgroup limits of a container, without its device rules.
// A value of zero is unset, here and in the result, so the result is also what
// an update changes; but a huge page limit of zero forbids such pages. Limits
// on huge pages are left out where the node has no controller for them (the
// kubelet sends one for every size), with a warning of [Build].
func Resources(n Node, r *runtimeapi.LinuxContainerResources) (*specs.LinuxResources, error) {
	res := &specs.LinuxResources{}
	if r == nil {
		return res, nil
	}
	var err error
	if res.CPU, err = cpu(r); err != nil {
		return nil, err
	}
	if res.Memory, err = memory(n, r); err != nil {
		return nil, err
	}
	if res.HugepageLimits, err = hugepages(n, r); err != nil {
		return nil, err
	}
	if res.Unified, err = unified(n, r.GetUnified()); err != nil {
		return nil, err
	}
	return res, nil
}

// resourceWarnings names the limits that the node cannot hold and that
// [Resources] has left out.
func resourceWarnings(n Node, r *runtimeapi.LinuxContainerResources) (warnings []string) {
	for _, h := range r.GetHugepageLimits() {
		if h.GetLimit() > 0 && !n.Hugetlb {
			warnings = append(warnings, fmt.Sprintf("hugepage_limits: the limit of %d bytes in pages of %s is not enforced, this node has no hugetlb controller", h.GetLimit(), h.GetPageSize()))
		}
	}
	return warnings
}

func cpu(r *runtimeapi.LinuxContainerResources) (*specs.LinuxCPU, error) {
	c := &specs.LinuxCPU{Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()}
	if s := r.GetCpuShares(); s != 0 {
		if s < 0 || s > maxCPUShares {
			return nil, fmt.Errorf("cpu_shares %d is not between %d and %d: %w", s, minCPUShares, maxCPUShares, errdefs.ErrInvalidArgument)
		}
		shares := uint64(max(s, minCPUShares)) // the kernel does the same with 1
		c.Shares = &shares
	}
	if q := r.GetCpuQuota(); q != 0 {
		if q != -1 && q < minCPUQuota {
			return nil, fmt.Errorf("cpu_quota %d is neither -1 (no limit) nor at least %d µs: %w", q, minCPUQuota, errdefs.ErrInvalidArgument)
		}
		c.Quota = &q
	}
	if p := r.GetCpuPeriod(); p != 0 {
		if p < minCPUPeriod || p > maxCPUPeriod {
			return nil, fmt.Errorf("cpu_period %d is not between %d and %d µs: %w", p, minCPUPeriod, maxCPUPeriod, errdefs.ErrInvalidArgument)
		}
		period := uint64(p)
		c.Period = &period
	}
	for _, set := range []struct{ field, list string }{{"cpuset_cpus", c.Cpus}, {"cpuset_mems", c.Mems}} {
		if !validCPUSet(set.list) {
			return nil, fmt.Errorf("%s %.64q is not a list such as 0-3,8 of numbers below %d: %w", set.field, set.list, maxCPUs, errdefs.ErrInvalidArgument)
		}
	}
	if *c == (specs.LinuxCPU{}) {
		return nil, nil
	}
	return c, nil
}

// validCPUSet takes the list format of cpuset(7), or nothing. Only the text is
// bounded here, never expanded (CVE-2018-20699).
func validCPUSet(list string) bool {
	if list == "" {
		return true
	}
	if len(list) > 32<<10 {
		return false
	}
	for part := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		a, errA := strconv.ParseUint(from, 10, 16)
		b, errB := strconv.ParseUint(to, 10, 16)
		if errA != nil || errB != nil || a > b || b >= maxCPUs {
			return false
		}
	}
	return true
}

// memory sets limit and swap. Without a swap limit of its own a container with
// a memory limit gets no swap: both figures of v1 and OCI are the sum of
// memory and swap, so they are equal.
func memory(n Node, r *runtimeapi.LinuxContainerResources) (*specs.LinuxMemory, error) {
	limit, swap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	if limit < -1 || swap < -1 {
		return nil, fmt.Errorf("memory_limit_in_bytes %d or memory_swap_limit_in_bytes %d is below -1: %w", limit, swap, errdefs.ErrInvalidArgument)
	}
	if swap > 0 && limit <= 0 {
		return nil, fmt.Errorf("memory_swap_limit_in_bytes %d without memory_limit_in_bytes, which it includes: %w", swap, errdefs.ErrInvalidArgument)
	}
	if swap > 0 && limit > swap {
		return nil, fmt.Errorf("memory_swap_limit_in_bytes %d, which counts memory and swap, is below memory_limit_in_bytes %d: %w", swap, limit, errdefs.ErrInvalidArgument)
	}
	if !n.SwapAccounting {
		if swap != 0 && swap != limit {
			return nil, fmt.Errorf("memory_swap_limit_in_bytes %d: this node's cgroups do not limit swap: %w", swap, errdefs.ErrFailedPrecondition)
		}
		swap = 0
	} else if swap == 0 {
		swap = limit
	}
	var m specs.LinuxMemory
	if limit != 0 {
		m.Limit = &limit
	}
	if swap != 0 {
		m.Swap = &swap
	}
	if m == (specs.LinuxMemory{}) {
		return nil, nil
	}
	return &m, nil
}

func hugepages(n Node, r *runtimeapi.LinuxContainerResources) ([]specs.LinuxHugepageLimit, error) {
	var list []specs.LinuxHugepageLimit
	for _, h := range r.GetHugepageLimits() {
		if !pageSize.MatchString(h.GetPageSize()) {
			return nil, fmt.Errorf("hugepage_limits: page size %.64q is not of the form 2MB: %w", h.GetPageSize(), errdefs.ErrInvalidArgument)
		}
		if n.Hugetlb {
			list = append(list, specs.LinuxHugepageLimit{Pagesize: h.GetPageSize(), Limit: h.GetLimit()})
		}
	}
	return list, nil
}

var (
	unifiedKey         = regexp.MustCompile(`^[a-z]+(\.[A-Za-z0-9_]+)+$`)
	unifiedControllers = []string{"cpu", "cpuset", "hugetlb", "io", "memory", "misc", "pids", "rdma"}
)

// unified are files of cgroup v2 and what to write to them. A name with a
// slash would be another cgroup's file (GHSA-5g49-rx9x-qfc6), and the files
// cgroup.* steer the group itself and belong to the runtime.
func unified(n Node, asked map[string]string) (map[string]string, error) {
	if len(asked) == 0 {
		return nil, nil
	}
	if !n.Cgroup2 {
		return nil, fmt.Errorf("unified: this node uses cgroup v1: %w", errdefs.ErrFailedPrecondition)
	}
	out := make(map[string]string, len(asked))
	for _, key := range slices.Sorted(maps.Keys(asked)) {
		value := asked[key]
		controller, _, _ := strings.Cut(key, ".")
		if len(key) > 128 || !unifiedKey.MatchString(key) || !slices.Contains(unifiedControllers, controller) {
			return nil, fmt.Errorf("unified: %.128q is not the name of a cgroup v2 file of a controller: %w", key, errdefs.ErrInvalidArgument)
		}
		if controller == "pids" && !n.Pids || controller == "hugetlb" && !n.Hugetlb {
			return nil, fmt.Errorf("unified: %s: this node has no %s controller: %w", key, controller, errdefs.ErrFailedPrecondition)
		}
		if len(value) > 4096 || strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' }) {
			return nil, fmt.Errorf("unified: %s has a value of more than one line of plain text: %w", key, errdefs.ErrInvalidArgument)
		}
		out[key] = value
	}
	return out, nil
}
