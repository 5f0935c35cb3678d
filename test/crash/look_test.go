package crash

import (
	"slices"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/killpoint"
)

// unchanged requires that all runs as it did when it was settled.
func (s *subject) unchanged() {
	s.t.Helper()
	if pod := s.pods(); len(pod) != 1 || pod[0].GetId() != s.id || pod[0].GetState() != runtimeapi.PodSandboxState_SANDBOX_READY {
		s.t.Errorf("pod %s became %v", s.id, pod)
	}
	for _, c := range []*container{&s.ctr, &s.sibling} {
		status, pid := s.status(c)
		if status.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING || pid != c.pid || !killpoint.Alive(pid) {
			s.t.Errorf("container %s with process %d became %v with process %d", c.config.Metadata.Name, c.pid, status, pid)
		}
	}
}

// pods are those with the subject's name.
func (s *subject) pods() []*runtimeapi.PodSandbox {
	s.t.Helper()
	resp, err := s.Runtime.ListPodSandbox(s.context(), &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: s.config.Labels}})
	s.must("listing pods", err)
	return resp.GetItems()
}

// containers are the subject's with the name of c.
func (s *subject) containers(c *container) (list []*runtimeapi.Container) {
	s.t.Helper()
	resp, err := s.Runtime.ListContainers(s.context(), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{LabelSelector: s.config.Labels}})
	s.must("listing containers", err)
	return slices.DeleteFunc(resp.GetContainers(), func(got *runtimeapi.Container) bool {
		return got.GetMetadata().GetName() != c.config.Metadata.Name
	})
}
