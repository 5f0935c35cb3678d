package runtimeservice

import (
	"context"
	"fmt"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/runtimeservice/lifecycle"
	"github.com/gantry-cri/gantry/sandbox/cgroup"
)

// stats is the RPCs about resources: what containers use and may use.
type stats struct{ *core }

// ContainerStats tells what one container uses: errdefs.ErrNotFound when there is none.
func (s *stats) ContainerStats(_ context.Context, req *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	c, err := s.index.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	st, err := s.containerStats(c)
	if err != nil {
		return nil, fmt.Errorf("container %s (%s): %w", c.key.name, c.id, err)
	}
	return &runtimeapi.ContainerStatsResponse{Stats: st}, nil
}

// ListContainerStats tells what the containers that match all of the filter
// use. One that cannot be read is left out and logged: the rest must not miss it.
func (s *stats) ListContainerStats(ctx context.Context, req *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	f := req.GetFilter()
	all, err := s.selected(f.GetId(), f.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ListContainerStatsResponse{}
	for _, c := range all {
		if !matchLabels(c.getConfig().GetLabels(), f.GetLabelSelector()) {
			continue
		}
		if st := s.listedStats(ctx, c); st != nil {
			resp.Stats = append(resp.Stats, st)
		}
	}
	return resp, nil
}

// listedStats is a container's figures for a list: nil when it has ended, is
// not shown at all, or cannot be read.
func (s *stats) listedStats(ctx context.Context, c *container) *runtimeapi.ContainerStats {
	if state, shown := shownContainer(c.getState()); !shown || state == runtimeapi.ContainerState_CONTAINER_EXITED {
		return nil
	}
	st, err := s.containerStats(c)
	if err != nil {
		klog.FromContext(ctx).V(2).Info("Stats of a container could not be read", "container", c.id, "err", err)
		return nil
	}
	return st
}

// containerStats tells what a container uses: nothing while it does not run.
// It costs what meter.read does; the writable layer's figures are remembered.
func (s *stats) containerStats(c *container) (*runtimeapi.ContainerStats, error) {
	cc := c.getConfig()
	st := &runtimeapi.ContainerStats{
		Attributes: &runtimeapi.ContainerAttributes{Id: c.id, Metadata: cc.GetMetadata(), Labels: cc.GetLabels(), Annotations: cc.GetAnnotations()},
	}
	if u, ok := s.images.Usage(c.id); ok {
		st.WritableLayer = &runtimeapi.FilesystemUsage{
			Timestamp: u.At.UnixNano(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: s.images.Mountpoint()},
			UsedBytes: value(u.Bytes), InodesUsed: value(u.Inodes),
		}
	}
	if c.getState() == lifecycle.ContainerRunning {
		r, err := c.meter.read(c.cgroup)
		if err == nil {
			st.Cpu, st.Memory, st.Swap, st.Io = r.cpu(), r.memory(), r.swap(), r.io()
			return st, nil
		}
		if c.getState() == lifecycle.ContainerRunning {
			return nil, err
		} // else it has ended meanwhile
	}
	st.Cpu, st.Memory = nothingUsed()
	return st, nil
}

// nothingUsed is the figures of what does not run; the fields are there for clients that look into them.
func nothingUsed() (*runtimeapi.CpuUsage, *runtimeapi.MemoryUsage) {
	now := time.Now().UnixNano()
	return &runtimeapi.CpuUsage{Timestamp: now, UsageCoreNanoSeconds: value(0)}, &runtimeapi.MemoryUsage{Timestamp: now, WorkingSetBytes: value(0)}
}

func value(v uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: v} }

func (r *reading) cpu() *runtimeapi.CpuUsage {
	u := &runtimeapi.CpuUsage{Timestamp: r.At.UnixNano(), UsageCoreNanoSeconds: value(r.CPUNanos), Psi: psi(r.CPUPSI)}
	if r.rate != nil {
		u.UsageNanoCores = value(*r.rate)
	}
	return u
}

func (r *reading) memory() *runtimeapi.MemoryUsage {
	m := r.Mem
	u := &runtimeapi.MemoryUsage{
		Timestamp: r.At.UnixNano(), WorkingSetBytes: value(m.WorkingSet), UsageBytes: value(m.Usage), RssBytes: value(m.RSS),
		PageFaults: value(m.PageFaults), MajorPageFaults: value(m.MajorPageFaults), Psi: psi(r.MemoryPSI),
	}
	if m.Limit != 0 {
		u.AvailableBytes = value(m.Limit - min(m.Limit, m.WorkingSet))
	}
	return u
}

// swap is nil where the kernel does not count it; what is available is told where there is a limit.
func (r *reading) swap() *runtimeapi.SwapUsage {
	if !r.Swap.Accounted {
		return nil
	}
	u := &runtimeapi.SwapUsage{Timestamp: r.At.UnixNano(), SwapUsageBytes: value(r.Swap.Usage)}
	if r.Swap.Limited {
		u.SwapAvailableBytes = value(r.Swap.Limit - min(r.Swap.Limit, r.Swap.Usage))
	}
	return u
}

func (r *reading) io() *runtimeapi.IoUsage {
	if r.IOPSI == nil {
		return nil
	}
	return &runtimeapi.IoUsage{Timestamp: r.At.UnixNano(), Psi: psi(r.IOPSI)}
}

// psi is pressure in the CRI's units: the kernel counts microseconds, the CRI nanoseconds.
func psi(p *cgroup.Pressure) *runtimeapi.PsiStats {
	if p == nil {
		return nil
	}
	data := func(s cgroup.Stall) *runtimeapi.PsiData {
		return &runtimeapi.PsiData{Total: s.Total * 1000, Avg10: s.Avg10, Avg60: s.Avg60, Avg300: s.Avg300}
	}
	return &runtimeapi.PsiStats{Full: data(p.Full), Some: data(p.Some)}
}
