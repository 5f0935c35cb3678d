package cgroup

import (
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// plan is what an update writes, in an order in which the kernel takes it.
func (g *Group) plan(r *specs.LinuxResources) ([]change, error) {
	if err := changeable(r); err != nil {
		return nil, err
	}
	var out []change
	for _, part := range []func(*specs.LinuxResources) ([]change, error){g.planMemory, g.planCPU, g.planPids, g.planHugepages, g.planUnified} {
		changes, err := part(r)
		if err != nil {
			return nil, err
		}
		out = append(out, changes...)
	}
	return out, nil
}

// changeable refuses what Update cannot do, rather than passing it over.
func changeable(r *specs.LinuxResources) error {
	set := map[string]bool{
		"block IO": r.BlockIO != nil,
		"network":  r.Network != nil,
		"RDMA":     len(r.Rdma) > 0,
	}
	if m := r.Memory; m != nil {
		set["memory reservation"] = m.Reservation != nil
		//lint:ignore SA1019 what is deprecated is refused too
		set["kernel memory"] = m.Kernel != nil || m.KernelTCP != nil
		set["swappiness"] = m.Swappiness != nil
		set["OOM killer"] = m.DisableOOMKiller != nil
		set["memory hierarchy"] = m.UseHierarchy != nil
	}
	if c := r.CPU; c != nil {
		set["CPU burst"] = c.Burst != nil
		set["CPU idle"] = c.Idle != nil
		set["realtime CPU"] = c.RealtimeRuntime != nil || c.RealtimePeriod != nil
	}
	for _, what := range slices.Sorted(maps.Keys(set)) {
		if set[what] {
			return fmt.Errorf("the %s settings of a running container cannot be changed: %w", what, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// value is what *p asks for; unset and zero are "leave as it is".
func value[T int64 | uint64](p *T) (T, bool) {
	if p == nil || *p == 0 {
		return 0, false
	}
	return *p, true
}

// limitOf orders limits, of which -1 is none.
func limitOf(n int64) int64 {
	if n < 0 {
		return math.MaxInt64
	}
	return n
}

func (g *Group) planMemory(r *specs.LinuxResources) ([]change, error) {
	if r.Memory == nil {
		return nil, nil
	}
	limit, newLimit := value(r.Memory.Limit)
	swap, newSwap := value(r.Memory.Swap) // of memory and swap together, as on version 1
	if !newLimit && !newSwap {
		return nil, nil
	}
	if limit < -1 || swap < -1 {
		return nil, fmt.Errorf("memory limit %d or swap limit %d is below -1: %w", limit, swap, errdefs.ErrInvalidArgument)
	}
	old, err := g.number("memory", g.limitFile())
	if err != nil {
		return nil, err
	}
	if !newLimit {
		limit = old
	}
	if newSwap && limitOf(swap) < limitOf(limit) {
		return nil, fmt.Errorf("the swap limit %d, which counts memory and swap, is below the memory limit %d: %w", swap, limit, errdefs.ErrInvalidArgument)
	}
	if newLimit && limitOf(limit) < limitOf(old) {
		if err := g.checkUsage(limit); err != nil {
			return nil, err
		}
	}
	if g.t.version == V2 {
		return g.planMemoryV2(newLimit, limit, newSwap, swap)
	}
	return g.planMemoryV1(newLimit, limit, old, newSwap, swap)
}

func (g *Group) limitFile() string {
	if g.t.version == V2 {
		return "memory.max"
	}
	return "memory.limit_in_bytes"
}

// checkUsage refuses a limit that the kernel could hold only by killing: below
// what is left when the page cache that is given up first is gone.
func (g *Group) checkUsage(limit int64) error {
	s, err := g.Stats()
	if err != nil {
		return err
	}
	if used := s.Mem.WorkingSet; used > uint64(limitOf(limit)) {
		return fmt.Errorf("memory limit %d is below the %d bytes that are in use: %w", limit, used, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// planMemoryV1 keeps the kernel's rule, limit <= memory and swap together, true
// at every step: what grows is written from the outside in, what shrinks from
// the inside out.
func (g *Group) planMemoryV1(newLimit bool, limit, oldLimit int64, newSwap bool, swap int64) ([]change, error) {
	const limitFile, swapFile = "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"
	setLimit := change{"memory", limitFile, strconv.FormatInt(limit, 10)}
	if !g.has("memory", swapFile) {
		if newSwap && limitOf(swap) != limitOf(limit) {
			return nil, fmt.Errorf("swap limit %d: the kernel does not account for swap (boot it with swapaccount=1): %w", swap, errdefs.ErrFailedPrecondition)
		}
		if !newLimit {
			return nil, nil
		}
		return []change{setLimit}, nil
	}
	oldSwap, err := g.number("memory", swapFile)
	if err != nil {
		return nil, err
	}
	if !newSwap {
		if oldSwap < 0 {
			return []change{setLimit}, nil
		}
		swap = -1
		if limit >= 0 {
			swap = limit + (oldSwap - limitOf(oldLimit))
		}
	}
	setSwap := change{"memory", swapFile, strconv.FormatInt(swap, 10)}
	switch {
	case !newLimit:
		return []change{setSwap}, nil
	case limitOf(swap) > limitOf(oldSwap):
		return []change{setSwap, setLimit}, nil
	default:
		return []change{setLimit, setSwap}, nil
	}
}

// planMemoryV2 writes limits that do not depend on each other; room for swap
// grows before and shrinks after the memory limit, so that less is killed.
func (g *Group) planMemoryV2(newLimit bool, limit int64, newSwap bool, swap int64) ([]change, error) {
	var out []change
	if newLimit {
		out = append(out, change{"memory", "memory.max", orMax(limit)})
	}
	if !newSwap {
		return out, nil
	}
	alone := int64(-1)
	if swap >= 0 {
		alone = swap - limit // swap is a limit, and limit is not above it
	}
	if !g.has("memory", "memory.swap.max") {
		if alone != 0 {
			return nil, fmt.Errorf("swap limit %d: the kernel does not account for swap (boot it with swapaccount=1): %w", swap, errdefs.ErrFailedPrecondition)
		}
		return out, nil
	}
	old, err := g.number("memory", "memory.swap.max")
	if err != nil {
		return nil, err
	}
	set := change{"memory", "memory.swap.max", orMax(alone)}
	if limitOf(alone) > limitOf(old) {
		return append([]change{set}, out...), nil
	}
	return append(out, set), nil
}

func orMax(n int64) string {
	if n < 0 {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}

// number reads a file with one number; no limit is -1.
func (g *Group) number(controller, name string) (int64, error) {
	text, err := g.read(controller, name)
	if err != nil {
		return 0, err
	}
	if text == "-1" { // cpu.cfs_quota_us
		return -1, nil
	}
	n, limited, err := parseNumber([]byte(text))
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	if !limited {
		return -1, nil
	}
	return int64(n), nil // below unlimited, which is below MaxInt64
}

func (g *Group) planCPU(r *specs.LinuxResources) ([]change, error) {
	c := r.CPU
	if c == nil {
		return nil, nil
	}
	var out []change
	if shares, ok := value(c.Shares); ok {
		if g.t.version == V2 {
			out = append(out, change{"cpu", "cpu.weight", strconv.FormatUint(weight(shares), 10)})
		} else {
			out = append(out, change{"cpu", "cpu.shares", strconv.FormatUint(shares, 10)})
		}
	}
	bandwidth, err := g.planBandwidth(c)
	if err != nil {
		return nil, err
	}
	out = append(out, bandwidth...)
	for _, set := range []change{{"cpuset", "cpuset.cpus", c.Cpus}, {"cpuset", "cpuset.mems", c.Mems}} {
		if strings.Trim(set.value, "0123456789,-") != "" {
			return nil, fmt.Errorf("%s %.64q is not a list such as 0-3,8: %w", set.file, set.value, errdefs.ErrInvalidArgument)
		}
		if set.value != "" {
			out = append(out, set)
		}
	}
	return out, nil
}

// weight turns cpu.shares of version 1 (2 to 262144, usually 1024) into
// cpu.weight of version 2 (1 to 10000, usually 100), by the curve through these
// three pairs that runc (since 1.3.2) and crun (since 1.23) use, so that an update
// gives what a start would.
func weight(shares uint64) uint64 {
	switch {
	case shares <= 2:
		return 1
	case shares >= 262144:
		return 10000
	}
	l := math.Log2(float64(shares))
	return uint64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34)))
}

func (g *Group) planBandwidth(c *specs.LinuxCPU) ([]change, error) {
	quota, newQuota := value(c.Quota)
	period, newPeriod := value(c.Period)
	if !newQuota && !newPeriod {
		return nil, nil
	}
	if quota < -1 {
		return nil, fmt.Errorf("CPU quota %d is below -1: %w", quota, errdefs.ErrInvalidArgument)
	}
	if g.t.version == V2 {
		old, err := g.read("cpu", "cpu.max")
		if err != nil {
			return nil, err
		}
		oldQuota, oldPeriod, _ := strings.Cut(old, " ")
		if newQuota {
			oldQuota = orMax(quota)
		}
		if newPeriod {
			oldPeriod = strconv.FormatUint(period, 10)
		}
		return []change{{"cpu", "cpu.max", oldQuota + " " + oldPeriod}}, nil
	}
	setQuota := change{"cpu", "cpu.cfs_quota_us", strconv.FormatInt(quota, 10)}
	setPeriod := change{"cpu", "cpu.cfs_period_us", strconv.FormatUint(period, 10)}
	switch {
	case !newPeriod:
		return []change{setQuota}, nil
	case !newQuota:
		return []change{setPeriod}, nil
	}
	// The kernel refuses quota/period above the parent's. Of the two orders the
	// one whose middle step has the smaller share is never above both ends.
	old, err := g.number("cpu", "cpu.cfs_period_us")
	if err != nil {
		return nil, err
	}
	if period >= uint64(max(old, 0)) {
		return []change{setPeriod, setQuota}, nil
	}
	return []change{setQuota, setPeriod}, nil
}

func (g *Group) planPids(r *specs.LinuxResources) ([]change, error) {
	if r.Pids == nil {
		return nil, nil
	}
	n, ok := value(r.Pids.Limit)
	if !ok {
		return nil, nil
	}
	return []change{{"pids", "pids.max", orMax(n)}}, nil
}

var pageSize = regexp.MustCompile(`^[1-9][0-9]{0,3}[KMG]B$`)

func (g *Group) planHugepages(r *specs.LinuxResources) ([]change, error) {
	var out []change
	suffixes := []string{".limit_in_bytes", ".rsvd.limit_in_bytes"}
	if g.t.version == V2 {
		suffixes = []string{".max", ".rsvd.max"}
	}
	for _, h := range r.HugepageLimits {
		if !pageSize.MatchString(h.Pagesize) {
			return nil, fmt.Errorf("huge page size %q is not of the form 2MB: %w", h.Pagesize, errdefs.ErrInvalidArgument)
		}
		for i, suffix := range suffixes {
			name := "hugetlb." + h.Pagesize + suffix
			if i > 0 && !g.has("hugetlb", name) { // reservations are counted since Linux 5.7
				continue
			}
			out = append(out, change{"hugetlb", name, strconv.FormatUint(h.Limit, 10)})
		}
	}
	return out, nil
}

var unifiedKey = regexp.MustCompile(`^[a-z]+(\.[A-Za-z0-9_]+)+$`)

func (g *Group) planUnified(r *specs.LinuxResources) ([]change, error) {
	if len(r.Unified) > 0 && g.t.version != V2 {
		return nil, fmt.Errorf("unified resources need cgroup version 2: %w", errdefs.ErrInvalidArgument)
	}
	var out []change
	for _, key := range slices.Sorted(maps.Keys(r.Unified)) {
		v := r.Unified[key]
		controller, _, _ := strings.Cut(key, ".")
		// cgroup.* files steer the cgroup; a slash would name another one's file.
		if !unifiedKey.MatchString(key) || controller == "cgroup" {
			return nil, fmt.Errorf("unified resource %.128q is not the name of a controller's file: %w", key, errdefs.ErrInvalidArgument)
		}
		if strings.ContainsAny(v, "\n\x00") || v == "" {
			return nil, fmt.Errorf("unified resource %s: value %.128q is not one line: %w", key, v, errdefs.ErrInvalidArgument)
		}
		out = append(out, change{controller, key, v})
	}
	return out, nil
}
