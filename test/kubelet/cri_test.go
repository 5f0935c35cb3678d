package kubelet

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What the kubelet does not pass on is asked from the runtime itself.

func criContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 30*time.Second)
}

// labelled selects what the kubelet made for the pod.
func (p *pod) labelled(container string) map[string]string {
	l := map[string]string{"io.kubernetes.pod.name": p.fullName()}
	if container != "" {
		l["io.kubernetes.container.name"] = container
	}
	return l
}

// containers are the pod's containers of one name, or all, in any state.
func (p *pod) containers(name string) []*runtimeapi.Container {
	p.t.Helper()
	ctx, cancel := criContext()
	defer cancel()
	resp, err := p.gantry.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{LabelSelector: p.labelled(name)}})
	if err != nil {
		p.t.Fatal(err)
	}
	return resp.GetContainers()
}

// status is the CRI's status of the pod's newest container of that name.
func (p *pod) status(name string) *runtimeapi.ContainerStatus {
	p.t.Helper()
	var newest *runtimeapi.Container
	for _, c := range p.containers(name) {
		if newest == nil || c.GetCreatedAt() > newest.GetCreatedAt() {
			newest = c
		}
	}
	ctx, cancel := criContext()
	defer cancel()
	resp, err := p.gantry.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: newest.GetId()})
	if err != nil {
		p.t.Fatal(err)
	}
	return resp.GetStatus()
}

// exec runs a command in the pod's container and requires that it succeeds.
func (p *pod) exec(container string, argv ...string) string {
	p.t.Helper()
	ctx, cancel := criContext()
	defer cancel()
	resp, err := p.gantry.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: p.status(container).GetId(), Cmd: argv, Timeout: 20})
	if err != nil || resp.GetExitCode() != 0 {
		p.t.Fatalf("exec %q in %s of pod %s: exit code %d, stderr %q, %v", argv, container, p.name, resp.GetExitCode(), resp.GetStderr(), err)
	}
	return string(resp.GetStdout())
}

// sandboxes are the pod's sandboxes in any state.
func (n *node) sandboxes(selector map[string]string) ([]*runtimeapi.PodSandbox, error) {
	ctx, cancel := criContext()
	defer cancel()
	resp, err := n.gantry.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: selector}})
	return resp.GetItems(), err
}

// gone tells whether the kubelet has done with the pod: not in its list, nothing of it running.
func (p *pod) gone() error {
	var list podList
	for _, path := range []string{"/pods", "/runningpods/"} {
		if err := p.getJSON(path, &list); err != nil {
			return err
		}
		for _, o := range list.Items {
			if o.Metadata.Name == p.fullName() {
				return fmt.Errorf("it is in %s", path)
			}
		}
	}
	for _, c := range p.containers("") {
		if c.GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING {
			return fmt.Errorf("container %s runs", c.GetMetadata().GetName())
		}
	}
	return nil
}

// processes are the ids of the processes with that in their command line.
func processes(t testing.TB, command string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var pids []string
	for _, f := range files {
		body, err := os.ReadFile(f)
		if err == nil && strings.HasPrefix(strings.ReplaceAll(string(body), "\x00", " "), command) { // else it has ended
			pids = append(pids, filepath.Base(filepath.Dir(f)))
		}
	}
	return pids
}
