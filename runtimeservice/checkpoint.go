package runtimeservice

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CheckpointContainer is refused: the kubelet tells so whoever asked it for a checkpoint.
func (unbuilt) CheckpointContainer(context.Context, *runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error) {
	return nil, noCheckpoints("container")
}

// CheckpointPod is refused.
func (unbuilt) CheckpointPod(context.Context, *runtimeapi.CheckpointPodRequest) (*runtimeapi.CheckpointPodResponse, error) {
	return nil, noCheckpoints("pod")
}

// RestorePod is refused.
func (unbuilt) RestorePod(context.Context, *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	return nil, fmt.Errorf("this version of gantry restores no checkpoints: run the pod anew: %w", errdefs.ErrNotImplemented)
}

func noCheckpoints(of string) error {
	return fmt.Errorf("this version of gantry makes no checkpoints, the %s runs on as it was: %w", of, errdefs.ErrNotImplemented)
}
