package runtimeservice

import (
	"testing"

	"github.com/containerd/errdefs"
)

func TestRefusesCheckpoints(t *testing.T) {
	for _, err := range []error{
		refuseArchive("/var/lib/kubelet/checkpoints/c.tar"),
		refuseAnnotated("sha256:1", map[string]string{"org.criu.checkpoint.container.name": "c"}),
		refuseAnnotated("sha256:1", map[string]string{"io.kubernetes.cri-o.annotations.checkpoint.name": ""}),
	} {
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("got %v", err)
		}
	}
	for _, err := range []error{refuseArchive("registry.k8s.io/pause:3.10"), refuseAnnotated("sha256:1", nil), refuseAnnotated("sha256:1", map[string]string{"x": "y"})} {
		if err != nil {
			t.Error(err)
		}
	}
}
