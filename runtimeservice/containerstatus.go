package runtimeservice

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/runtimeservice/lifecycle"
)

// shownContainer is a container's state for the CRI; one that is not made yet is not shown.
func shownContainer(s lifecycle.Container) (state runtimeapi.ContainerState, shown bool) {
	switch s {
	case lifecycle.ContainerCreated, lifecycle.ContainerStarting:
		return runtimeapi.ContainerState_CONTAINER_CREATED, true
	case lifecycle.ContainerRunning:
		return runtimeapi.ContainerState_CONTAINER_RUNNING, true
	case lifecycle.ContainerExited, lifecycle.ContainerRemoving:
		return runtimeapi.ContainerState_CONTAINER_EXITED, true
	}
	return runtimeapi.ContainerState_CONTAINER_UNKNOWN, false
}

// ListContainers lists the containers that match all of the filter, oldest first.
func (s *containers) ListContainers(_ context.Context, req *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	f := req.GetFilter()
	all, err := s.selected(f.GetId(), f.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ListContainersResponse{}
	for _, c := range all {
		cc := c.getConfig()
		state, shown := shownContainer(c.getState())
		if !shown || f.GetState() != nil && f.GetState().GetState() != state || !matchLabels(cc.GetLabels(), f.GetLabelSelector()) {
			continue
		}
		resp.Containers = append(resp.Containers, &runtimeapi.Container{
			Id: c.id, PodSandboxId: c.pod.id, Metadata: cc.GetMetadata(), Image: c.imageSpec(cc), ImageRef: c.imageRef, ImageId: c.imageID,
			State: state, CreatedAt: c.createdAt, Labels: cc.GetLabels(), Annotations: cc.GetAnnotations(),
		})
	}
	return resp, nil
}

// selected is the containers with this id and of this pod, each "" for any;
// ids that do not exist select none.
func (s *core) selected(id, podID string) ([]*container, error) {
	var of *pod
	if podID != "" {
		p, err := s.index.pod(podID)
		if errdefs.IsNotFound(err) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		of = p
	}
	if id == "" {
		return s.index.allContainers(of), nil
	}
	c, err := s.index.container(id)
	switch {
	case errdefs.IsNotFound(err), err == nil && of != nil && c.pod != of:
		return nil, nil
	case err != nil:
		return nil, err
	}
	return []*container{c}, nil
}

// imageSpec is the image as the request named it, but with the name that people know it by.
func (c *container) imageSpec(cc *runtimeapi.ContainerConfig) *runtimeapi.ImageSpec {
	return &runtimeapi.ImageSpec{
		Image: c.imageName, UserSpecifiedImage: cc.GetImage().GetUserSpecifiedImage(),
		Annotations: cc.GetImage().GetAnnotations(), RuntimeHandler: cc.GetImage().GetRuntimeHandler(),
	}
}

// ContainerStatus tells all of one container: errdefs.ErrNotFound when there is none.
func (s *containers) ContainerStatus(_ context.Context, req *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	c, err := s.index.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	st, shown := c.status()
	if !shown {
		return nil, fmt.Errorf("container %q is still being made: %w", req.GetContainerId(), errdefs.ErrNotFound)
	}
	resp := &runtimeapi.ContainerStatusResponse{Status: st}
	if req.GetVerbose() {
		resp.Info, err = s.containerInfo(c)
	}
	return resp, err
}

func (c *container) status() (st *runtimeapi.ContainerStatus, shown bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	state, shown := shownContainer(c.state)
	if !shown {
		return nil, false
	}
	cc := c.config
	st = &runtimeapi.ContainerStatus{
		Id: c.id, Metadata: cc.GetMetadata(), State: state,
		CreatedAt: c.createdAt, StartedAt: c.startedAt, FinishedAt: c.finishedAt, ExitCode: c.exitCode, Reason: c.reason, Message: c.message,
		Image: c.imageSpec(cc), ImageRef: c.imageRef, ImageId: c.imageID,
		Labels: cc.GetLabels(), Annotations: cc.GetAnnotations(), Mounts: cc.GetMounts(),
		User:       &runtimeapi.ContainerUser{Linux: &runtimeapi.LinuxContainerUser{Uid: int64(c.user.uid), Gid: int64(c.user.gid)}},
		StopSignal: shownSignal(c.stopSignal),
	}
	for _, g := range c.user.groups {
		st.User.Linux.SupplementalGroups = append(st.User.Linux.SupplementalGroups, int64(g))
	}
	if r := cc.GetLinux().GetResources(); r != nil {
		st.Resources = &runtimeapi.ContainerResources{Linux: r}
	}
	if dir := c.pod.config.GetLogDirectory(); dir != "" && cc.GetLogPath() != "" {
		st.LogPath = filepath.Join(dir, cc.GetLogPath())
	}
	return st, true
}

// containerInfo is the verbose part of ContainerStatus, in the form that
// crictl and the scripts around it read.
func (s *containers) containerInfo(c *container) (map[string]string, error) {
	c.mu.Lock()
	pid, configJSON := c.pid, c.configJSON
	c.mu.Unlock()
	info := map[string]any{
		"sandboxID": c.pod.id, "pid": pid, "image": c.imageName, "cgroup": c.cgroup,
		"runtimeType": c.pod.runtime, "config": json.RawMessage(configJSON),
	}
	if spec, err := s.host.ReadBundle(c.id); err == nil { // it may be removed at this moment
		info["runtimeSpec"] = spec
	}
	b, err := json.Marshal(info)
	if err != nil {
		return nil, fmt.Errorf("encoding the verbose info: %w", err)
	}
	return map[string]string{"info": string(b)}, nil
}
