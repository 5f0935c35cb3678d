package runtimeservice

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What is not done is said in a sentence, as the kind that the kubelet knows.
func TestNoCheckpoints(t *testing.T) {
	s := &Service{}
	_, container := s.CheckpointContainer(t.Context(), &runtimeapi.CheckpointContainerRequest{})
	_, pod := s.CheckpointPod(t.Context(), &runtimeapi.CheckpointPodRequest{})
	_, restore := s.RestorePod(t.Context(), &runtimeapi.RestorePodRequest{})
	for _, err := range []error{container, pod, restore} {
		if !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "this version of gantry") {
			t.Errorf("got %v", err)
		}
	}
}
