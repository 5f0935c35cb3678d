package runtimeservice

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
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
