package runtimeservice

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/runtimeservice/lifecycle"
)

// shownPod is a pod's state for the CRI; a pod that is not made yet is not shown.
func shownPod(s lifecycle.Pod) (state runtimeapi.PodSandboxState, shown bool) {
	switch s {
	case lifecycle.PodReady:
		return runtimeapi.PodSandboxState_SANDBOX_READY, true
	case lifecycle.PodStopping, lifecycle.PodNotReady, lifecycle.PodRemoving:
		return runtimeapi.PodSandboxState_SANDBOX_NOTREADY, true
	}
	return runtimeapi.PodSandboxState_SANDBOX_NOTREADY, false
}

// ListPodSandbox lists the pods that match all of the filter, oldest first.
func (s *pods) ListPodSandbox(_ context.Context, req *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	f := req.GetFilter()
	candidates := s.index.allPods()
	if id := f.GetId(); id != "" {
		p, err := s.index.pod(id)
		switch {
		case errdefs.IsNotFound(err):
			candidates = nil
		case err != nil:
			return nil, err
		default:
			candidates = []*pod{p}
		}
	}
	resp := &runtimeapi.ListPodSandboxResponse{}
	for _, p := range candidates {
		state, shown := shownPod(p.getState())
		if !shown || f.GetState() != nil && f.GetState().GetState() != state || !matchLabels(p.config.GetLabels(), f.GetLabelSelector()) {
			continue
		}
		resp.Items = append(resp.Items, &runtimeapi.PodSandbox{
			Id: p.id, Metadata: p.config.GetMetadata(), State: state, CreatedAt: p.createdAt,
			Labels: p.config.GetLabels(), Annotations: p.config.GetAnnotations(), RuntimeHandler: p.handler,
		})
	}
	return resp, nil
}

// PodSandboxStatus tells all of one pod, with its containers' statuses:
// errdefs.ErrNotFound when there is no such pod.
func (s *pods) PodSandboxStatus(_ context.Context, req *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	p, err := s.index.pod(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	// From before the first is read: to the kubelet a time that is not zero says
	// that the statuses are complete and none is older.
	resp := &runtimeapi.PodSandboxStatusResponse{Timestamp: time.Now().UnixNano()}
	var shown bool
	if resp.Status, shown = p.status(); !shown {
		return nil, fmt.Errorf("pod sandbox %q is still being made: %w", req.GetPodSandboxId(), errdefs.ErrNotFound)
	}
	resp.ContainersStatuses = s.statuses(p)
	if req.GetVerbose() {
		resp.Info, err = s.podInfo(p, p.getState())
	}
	return resp, err
}

// status is the pod's status as it is now; shown is false before it is made and after it was removed.
func (p *pod) status() (st *runtimeapi.PodSandboxStatus, shown bool) {
	rec := p.snapshot()
	state, shown := shownPod(rec.State)
	ns := p.config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if ns == nil { // the defaults, spelled out: the kubelet compares them
		ns = &runtimeapi.NamespaceOption{}
	}
	network := &runtimeapi.PodSandboxNetworkStatus{}
	for i, ip := range rec.IPs {
		if i == 0 {
			network.Ip = ip.String()
			continue
		}
		network.AdditionalIps = append(network.AdditionalIps, &runtimeapi.PodIP{Ip: ip.String()})
	}
	return &runtimeapi.PodSandboxStatus{
		Id: p.id, Metadata: p.config.GetMetadata(), State: state, CreatedAt: p.createdAt, Network: network,
		Linux:  &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: ns}},
		Labels: p.config.GetLabels(), Annotations: p.config.GetAnnotations(), RuntimeHandler: p.handler,
	}, shown
}

// statuses is the status of each of the pod's containers, newest first: a
// kubelet that listens to events takes the first of a name for the one that
// counts (it sorts what it asks for singly, but not the list of PodSandboxStatus).
func (c *core) statuses(p *pod) []*runtimeapi.ContainerStatus {
	var all []*runtimeapi.ContainerStatus
	for _, ctr := range slices.Backward(c.index.allContainers(p)) {
		if st, shown := ctr.status(); shown {
			all = append(all, st)
		}
	}
	return all
}

// podInfo is the verbose part of PodSandboxStatus, in the form that crictl and
// the scripts around it read.
func (s *pods) podInfo(p *pod, state lifecycle.Pod) (map[string]string, error) {
	paths := s.host.PodPaths(p.id, p.own)
	overhead, resources := p.sizes()
	info, err := json.Marshal(map[string]any{
		"overhead":         overhead,
		"resources":        resources,
		"sandboxState":     state,
		"runtimeHandler":   p.handler,
		"config":           json.RawMessage(p.configJSON),
		"networkNamespace": paths.Net,
		"ipcNamespace":     paths.IPC,
		"utsNamespace":     paths.UTS,
	})
	if err != nil {
		return nil, fmt.Errorf("encoding the verbose info: %w", err)
	}
	return map[string]string{"info": string(info)}, nil
}
