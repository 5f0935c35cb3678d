package runtimeservice

import (
	"context"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/cni"
	"github.com/gantry-cri/gantry/runtimeservice/lifecycle"
)

// PodSandboxStats tells what one pod and its containers use: errdefs.ErrNotFound
// when there is none. A pod that is not ready uses nothing.
func (s *stats) PodSandboxStats(ctx context.Context, req *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	p, err := s.index.pod(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PodSandboxStatsResponse{Stats: s.podStats(ctx, []*pod{p}, s.index.allContainers(p))[0]}, nil
}

// ListPodSandboxStats tells what the ready pods that match all of the filter
// use, oldest first.
func (s *stats) ListPodSandboxStats(ctx context.Context, req *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	pods, err := s.selectedPods(req.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListPodSandboxStatsResponse{Stats: s.podStats(ctx, pods, s.index.allContainers(nil))}, nil
}

// selectedPods are the ready pods that match all of a filter.
func (s *stats) selectedPods(f *runtimeapi.PodSandboxStatsFilter) ([]*pod, error) {
	candidates := s.index.allPods()
	if id := f.GetId(); id != "" {
		p, err := s.index.pod(id)
		switch {
		case errdefs.IsNotFound(err):
			return nil, nil
		case err != nil:
			return nil, err
		}
		candidates = []*pod{p}
	}
	var out []*pod
	for _, p := range candidates {
		if p.getState() == lifecycle.PodReady && matchLabels(p.config.GetLabels(), f.GetLabelSelector()) {
			out = append(out, p)
		}
	}
	return out, nil
}

// podStats tells what each of pods uses, with those of containers that are its,
// in the same order. Figures that cannot be read are left out and logged.
//
// It costs the reading of each pod's cgroup and of each running container's
// (see meter.read), and one netlink dump for the network of all pods together
// (see [cni.Networks.Counters]): 70 µs for a pod with one container, of which
// the kernel needs most for memory.stat. Nothing is waited for.
func (s *stats) podStats(ctx context.Context, pods []*pod, containers []*container) []*runtimeapi.PodSandboxStats {
	ids := make([]string, 0, len(pods))
	for _, p := range pods {
		if p.own.Net {
			ids = append(ids, p.id)
		}
	}
	network, err := s.networks.Counters(ids)
	if err != nil {
		klog.FromContext(ctx).V(2).Info("Network counters of some pods could not be read", "err", err)
	}
	networkAt := time.Now().UnixNano()
	of := make(map[*pod][]*container, len(pods))
	for _, c := range containers {
		of[c.pod] = append(of[c.pod], c)
	}
	out := make([]*runtimeapi.PodSandboxStats, 0, len(pods))
	for _, p := range pods {
		linux := &runtimeapi.LinuxPodSandboxStats{Network: networkUsage(networkAt, network[p.id])}
		for _, c := range of[p] {
			if st := s.listedStats(ctx, c); st != nil {
				linux.Containers = append(linux.Containers, st)
			}
		}
		s.podUsage(ctx, p, of[p], linux)
		out = append(out, &runtimeapi.PodSandboxStats{
			Attributes: &runtimeapi.PodSandboxAttributes{
				Id: p.id, Metadata: p.config.GetMetadata(), Labels: p.config.GetLabels(), Annotations: p.config.GetAnnotations(),
			},
			Linux: linux,
		})
	}
	return out
}

// podUsage fills in what the pod uses as a whole; nothing when it is not ready.
func (s *stats) podUsage(ctx context.Context, p *pod, containers []*container, linux *runtimeapi.LinuxPodSandboxStats) {
	var r reading
	if p.getState() == lifecycle.PodReady {
		var err error
		if r, err = s.podReading(p, containers); err != nil {
			klog.FromContext(ctx).V(2).Info("Stats of a pod could not be read", "podID", p.id, "err", err)
		}
	}
	if r.At.IsZero() {
		r.At = time.Now()
	}
	linux.Cpu, linux.Memory, linux.Io = r.cpu(), r.memory(), r.io()
	linux.Process = &runtimeapi.ProcessUsage{Timestamp: r.At.UnixNano(), ProcessCount: value(r.Pids)}
}

// podReading reads the pod's cgroup. The kubelet gives each pod one of its own,
// cgroup_parent; pods without share theirs, so of those the containers are added up.
func (s *stats) podReading(p *pod, containers []*container) (reading, error) {
	if p.config.GetLinux().GetCgroupParent() != "" {
		path, err := cgroupDir(s.node, p.config, "")
		if err != nil {
			return reading{}, err
		}
		return p.meter.read(path)
	}
	var sum reading
	for _, c := range containers {
		if c.getState() != lifecycle.ContainerRunning {
			continue
		}
		r, err := c.meter.read(c.cgroup)
		if err != nil {
			continue // it has ended just now
		}
		sum.At = r.At
		sum.CPUNanos += r.CPUNanos
		sum.Pids += r.Pids
		sum.Mem.Usage += r.Mem.Usage
		sum.Mem.WorkingSet += r.Mem.WorkingSet
		sum.Mem.RSS += r.Mem.RSS
		sum.Mem.PageFaults += r.Mem.PageFaults
		sum.Mem.MajorPageFaults += r.Mem.MajorPageFaults
		if r.rate != nil {
			rate := *r.rate
			if sum.rate != nil {
				rate += *sum.rate
			}
			sum.rate = &rate
		}
	}
	return sum, nil
}

// networkUsage is nil for a pod on the host's network: what goes through that is the node's.
func networkUsage(at int64, all []cni.Interface) *runtimeapi.NetworkUsage {
	if len(all) == 0 {
		return nil
	}
	u := &runtimeapi.NetworkUsage{Timestamp: at}
	for i, n := range all {
		usage := &runtimeapi.NetworkInterfaceUsage{
			Name: n.Name, RxBytes: value(n.RxBytes), RxErrors: value(n.RxErrors), TxBytes: value(n.TxBytes), TxErrors: value(n.TxErrors),
		}
		if i == 0 {
			u.DefaultInterface = usage
		} else {
			u.Interfaces = append(u.Interfaces, usage)
		}
	}
	return u
}
