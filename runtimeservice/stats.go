package runtimeservice

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/runtimeservice/lifecycle"
	"github.com/gantry-cri/gantry/runtimeservice/ocispec"
	"github.com/gantry-cri/gantry/sandbox/cgroup"
)

// stats is the RPCs about resources: what containers use and may use.
type stats struct{ *core }

// cpuSample is an earlier reading, from which the rate since then is told.
type cpuSample struct {
	at    time.Time
	nanos uint64
	rate  *uint64 // nanoseconds of CPU a second between the last two readings
}

// minSampleGap keeps the rate from being told of too short a time to mean anything.
const minSampleGap = 100 * time.Millisecond

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
		state, shown := shownContainer(c.getState())
		if !shown || state == runtimeapi.ContainerState_CONTAINER_EXITED || !matchLabels(c.getConfig().GetLabels(), f.GetLabelSelector()) {
			continue
		}
		st, err := s.containerStats(c)
		if err != nil {
			klog.FromContext(ctx).V(2).Info("Stats of a container could not be read", "container", c.id, "err", err)
			continue
		}
		resp.Stats = append(resp.Stats, st)
	}
	return resp, nil
}

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
	if c.getState() != lifecycle.ContainerRunning {
		// Nothing runs, so nothing is used; the fields are there for clients that look into them.
		now := time.Now().UnixNano()
		st.Cpu = &runtimeapi.CpuUsage{Timestamp: now, UsageCoreNanoSeconds: value(0)}
		st.Memory = &runtimeapi.MemoryUsage{Timestamp: now, WorkingSetBytes: value(0)}
		return st, nil
	}
	usage, rate, err := c.readUsage()
	if err != nil {
		return nil, err
	}
	at := usage.At.UnixNano()
	st.Cpu = &runtimeapi.CpuUsage{Timestamp: at, UsageCoreNanoSeconds: value(usage.CPUNanos)}
	if rate != nil {
		st.Cpu.UsageNanoCores = value(*rate)
	}
	m := usage.Mem
	st.Memory = &runtimeapi.MemoryUsage{
		Timestamp: at, WorkingSetBytes: value(m.WorkingSet), UsageBytes: value(m.Usage), RssBytes: value(m.RSS),
		PageFaults: value(m.PageFaults), MajorPageFaults: value(m.MajorPageFaults),
	}
	if m.Limit != 0 {
		st.Memory.AvailableBytes = value(m.Limit - min(m.Limit, m.WorkingSet))
	}
	return st, nil
}

func value(v uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: v} }

// readUsage reads the container's cgroup, whose files stay open for the next time.
func (c *container) readUsage() (cgroup.Stats, *uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != lifecycle.ContainerRunning {
		return cgroup.Stats{}, nil, fmt.Errorf("it is %v: %w", c.state, errdefs.ErrFailedPrecondition)
	}
	if c.group == nil {
		g, err := cgroup.Open(c.cgroup)
		if errors.Is(err, fs.ErrNotExist) {
			return cgroup.Stats{}, nil, fmt.Errorf("its cgroup %s is gone: %w", c.cgroup, errdefs.ErrFailedPrecondition)
		}
		if err != nil {
			return cgroup.Stats{}, nil, err
		}
		c.group = g
	}
	u, err := c.group.Stats()
	if err != nil {
		return cgroup.Stats{}, nil, err
	}
	if gap := u.At.Sub(c.cpu.at); gap >= minSampleGap {
		next := cpuSample{at: u.At, nanos: u.CPUNanos}
		if !c.cpu.at.IsZero() {
			rate := uint64(float64(u.CPUNanos-min(u.CPUNanos, c.cpu.nanos)) / gap.Seconds())
			next.rate = &rate
		}
		c.cpu = next
	}
	return u, c.cpu.rate, nil
}

// closeGroup closes the cgroup files that stats have opened.
func (c *container) closeGroup() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.group == nil {
		return nil
	}
	err := c.group.Close()
	c.group = nil
	return err
}

// UpdateContainerResources changes a container's limits, all of those given
// or, on an error, none; what is zero stays as it is. A container that has not
// been started is started with them.
func (s *stats) UpdateContainerResources(ctx context.Context, req *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	c, err := s.index.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if err := c.op.lock(ctx); err != nil {
		return nil, fmt.Errorf("container %s is busy: %w", c.id, err)
	}
	defer c.op.unlock()
	if err := s.update(c, req.GetLinux()); err != nil {
		return nil, fmt.Errorf("updating container %s (%s): %w", c.key.name, c.id, err)
	}
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

func (s *stats) update(c *container, change *runtimeapi.LinuxContainerResources) error {
	if change == nil {
		return nil
	}
	config, configJSON, err := withResources(c.getConfig(), change)
	if err != nil {
		return err
	}
	all, err := ocispec.Resources(s.node, config.GetLinux().GetResources())
	if err != nil {
		return err
	}
	switch state := c.getState(); state {
	case lifecycle.ContainerCreated:
		spec, err := s.host.ReadBundle(c.id)
		if err != nil {
			return err
		}
		all.Devices = spec.Linux.Resources.Devices
		spec.Linux.Resources = all
		if err := s.host.WriteBundle(c.id, spec); err != nil {
			return err
		}
	case lifecycle.ContainerRunning:
		only, err := ocispec.Resources(s.node, change)
		if err != nil {
			return err
		}
		if err := c.updateCgroup(func(g *cgroup.Group) error { return g.Update(only) }); err != nil {
			return err
		}
	default:
		return fmt.Errorf("it is %v: %w", state, errdefs.ErrFailedPrecondition)
	}
	c.mu.Lock()
	c.config, c.configJSON = config, configJSON
	c.mu.Unlock()
	return s.save(c)
}

func (c *container) updateCgroup(f func(*cgroup.Group) error) error {
	g, err := cgroup.Open(c.cgroup)
	if err != nil {
		return err
	}
	return errors.Join(f(g), g.Close())
}
