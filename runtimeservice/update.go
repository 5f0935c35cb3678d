package runtimeservice

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/protojson"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/runtimeservice/lifecycle"
	"github.com/gantry-cri/gantry/runtimeservice/ocispec"
	"github.com/gantry-cri/gantry/sandbox/cgroup"
)

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
	if err := s.update(ctx, c, req.GetLinux()); err != nil {
		return nil, fmt.Errorf("updating container %s (%s): %w", c.key.name, c.id, partMissing(err))
	}
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

// limits are a container's, as the CRI, the record and the OCI runtime have them.
type limits struct {
	config     *runtimeapi.ContainerConfig
	configJSON []byte
	all        *specs.LinuxResources // without device rules
	oomScore   int
}

func (s *stats) limits(config *runtimeapi.ContainerConfig, configJSON []byte) (l limits, err error) {
	l.config, l.configJSON = config, configJSON
	r := config.GetLinux().GetResources()
	if l.all, err = ocispec.Resources(s.node, r); err == nil {
		l.oomScore, err = ocispec.OOMScoreAdj(s.node, r)
	}
	return l, err
}

// update is called with c.op held.
func (s *stats) update(ctx context.Context, c *container, change *runtimeapi.LinuxContainerResources) error {
	if change == nil {
		return nil
	}
	c.mu.Lock()
	was, wasJSON := c.config, c.configJSON
	c.mu.Unlock()
	config, configJSON, err := withResources(was, change)
	if err != nil {
		return err
	}
	to, err := s.limits(config, configJSON)
	if err != nil {
		return err
	}
	from, err := s.limits(was, wasJSON)
	if err != nil {
		return err
	}
	switch state := c.getState(); state {
	case lifecycle.ContainerCreated:
		enter := func(l limits) error {
			if err := s.updateBundle(c, l); err != nil {
				return err
			}
			return s.enterLimits(c, l)
		}
		err := enter(to)
		if err != nil {
			if undone := enter(from); undone != nil {
				err = fmt.Errorf("%w (undoing: %w)", err, undone)
			}
		}
		return err
	case lifecycle.ContainerRunning:
		only, err := ocispec.Resources(s.node, written(config, change))
		if err != nil {
			return err
		}
		return s.updateRunning(ctx, c, from, to, only)
	default:
		return fmt.Errorf("it is %v: %w", state, errdefs.ErrFailedPrecondition)
	}
}

// updateBundle changes what the container is started with.
func (s *stats) updateBundle(c *container, to limits) error {
	spec, err := s.host.ReadBundle(c.id)
	if err != nil {
		return err
	}
	r := *to.all
	r.Devices = spec.Linux.Resources.Devices
	spec.Linux.Resources, spec.Process.OOMScoreAdj = &r, &to.oomScore
	ocispec.SetUnitProperties(s.node, spec)
	return s.host.WriteBundle(c.id, spec)
}

// enterLimits makes the limits the container's, for all to see and in its record.
func (s *stats) enterLimits(c *container, l limits) error {
	c.mu.Lock()
	c.config, c.configJSON = l.config, l.configJSON
	c.mu.Unlock()
	return s.save(c)
}

// undoTimeout bounds how long a failed update takes to tell systemd the old limits.
const undoTimeout = 30 * time.Second

// updateRunning changes the cgroup's files, by only, and then what else has the
// limits: the processes' oom_score_adj, systemd's unit, the record. When one
// fails, all get the old limits back. Swap that is taken away altogether is the
// one limit that systemd does not hear of (see ocispec.SetUnitProperties): until a
// daemon-reload it holds. What is exec'd later has the oom_score_adj
// of the start, for the OCI runtimes take it from there.
func (s *stats) updateRunning(ctx context.Context, c *container, from, to limits, only *specs.LinuxResources) (err error) {
	g, err := cgroup.Open(c.cgroup)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.Close()) }()
	others := func(ctx context.Context, l limits) error {
		if from.oomScore != to.oomScore {
			if err := g.SetOOMScoreAdj(l.oomScore); err != nil {
				return err
			}
		}
		if c.runtime.Systemd {
			if err := s.host.UpdateContainer(ctx, c.id, l.all); err != nil {
				return err
			}
		}
		return s.enterLimits(c, l)
	}
	return g.Update(only, func() error {
		err := others(ctx, to)
		if err == nil {
			return nil
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		if undone := others(ctx, from); undone != nil {
			err = fmt.Errorf("%w (undoing: %w)", err, undone)
		}
		return err
	})
}

// UpdatePodSandboxResources remembers what the pod's containers may use
// together, and its overhead, which PodSandboxStatus then shows. The pod's
// cgroup is the kubelet's, which has changed it by now.
func (s *stats) UpdatePodSandboxResources(ctx context.Context, req *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	p, err := s.index.pod(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if err := p.op.lock(ctx); err != nil {
		return nil, fmt.Errorf("pod %s is busy: %w", p.id, err)
	}
	defer p.op.unlock()
	for field, r := range map[string]*runtimeapi.LinuxContainerResources{"overhead": req.GetOverhead(), "resources": req.GetResources()} {
		if _, err := ocispec.Resources(s.node, r); err != nil {
			return nil, fmt.Errorf("updating pod %s/%s: %s: %w", p.key.namespace, p.key.name, field, err)
		}
	}
	overhead, resources := p.sizes()
	if req.GetOverhead() != nil {
		overhead = req.GetOverhead()
	}
	if req.GetResources() != nil {
		resources = req.GetResources()
	}
	sized := &runtimeapi.UpdatePodSandboxResourcesRequest{Overhead: overhead, Resources: resources}
	p.mu.Lock()
	old := p.sized
	p.sized = sized
	p.mu.Unlock()
	if err := s.savePod(p); err != nil {
		p.mu.Lock()
		p.sized = old
		p.mu.Unlock()
		return nil, fmt.Errorf("updating pod %s/%s: %w", p.key.namespace, p.key.name, err)
	}
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, nil
}

// sizes are the pod's overhead and resources as they are now; either may be nil.
func (p *pod) sizes() (overhead, resources *runtimeapi.LinuxContainerResources) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sized != nil {
		return p.sized.GetOverhead(), p.sized.GetResources()
	}
	return p.config.GetLinux().GetOverhead(), p.config.GetLinux().GetResources()
}

// encodeSized is the record's form; nil is none.
func encodeSized(m *runtimeapi.UpdatePodSandboxResourcesRequest) []byte {
	if m == nil {
		return nil
	}
	b, err := protojson.Marshal(m)
	if err != nil { // of a message that was decoded: its strings are UTF-8
		return nil
	}
	return b
}

func decodeSized(data []byte) (*runtimeapi.UpdatePodSandboxResourcesRequest, error) {
	if len(data) == 0 {
		return nil, nil
	}
	m := new(runtimeapi.UpdatePodSandboxResourcesRequest)
	if err := unmarshal.Unmarshal(data, m); err != nil {
		return nil, fmt.Errorf("its sizes: %w", err)
	}
	return m, nil
}
