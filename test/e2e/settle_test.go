package e2e

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// lists are the answers to the two requests by which the kubelet learns what there is.
func (n *node) lists(ctx context.Context) (pods, containers map[string]proto.Message, err error) {
	p, err := n.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, nil, err
	}
	c, err := n.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, nil, err
	}
	pods, containers = map[string]proto.Message{}, map[string]proto.Message{}
	for _, item := range p.GetItems() {
		pods[item.GetId()] = item
	}
	for _, item := range c.GetContainers() {
		containers[item.GetId()] = item
	}
	return pods, containers, nil
}

func wantSame(t *testing.T, before, after map[string]proto.Message) {
	t.Helper()
	if len(before) != len(after) {
		t.Errorf("%d became %d", len(before), len(after))
	}
	for id, was := range before {
		if !proto.Equal(was, after[id]) {
			t.Errorf("%v became %v", was, after[id])
		}
	}
}

// The first answer of a daemon that was killed beside 40 pods is that of before, in every field, whatever the pods'
// states; whether the supervisor was killed too or not.
func TestFirstAnswerIsExact(t *testing.T) {
	n := newNode(t)
	const count = 40
	pods := make([]*pod, count)
	for i := range pods {
		pods[i] = n.runPod(fmt.Sprint("pod-", i))
	}
	var wg sync.WaitGroup
	for i, p := range pods {
		wg.Go(func() {
			// Beside the test's goroutine it is not ended by a failure.
			request := func(what string, err error) {
				if err != nil {
					t.Errorf("%s in pod %d: %v", what, i, err)
				}
			}
			create := func(name, script string) *container {
				id, err := p.tryCreate(p.containerConfig(name, script))
				request("CreateContainer", err)
				return &container{pod: p, id: id, name: name}
			}
			start := func(c *container) {
				_, err := p.Runtime.StartContainer(p.context(), &runtimeapi.StartContainerRequest{ContainerId: c.id})
				request("StartContainer", err)
			}
			start(create("c", forever))
			switch i % 4 {
			case 1:
				create("created", forever)
			case 2:
				start(create("exited", "exit 3"))
			case 3:
				_, err := p.Runtime.StopPodSandbox(p.context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id})
				request("StopPodSandbox", err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	n.eventually("what ends has ended", func() bool {
		resp, err := n.Runtime.ListContainers(n.context(), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
			State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_EXITED}}})
		return err == nil && len(resp.GetContainers()) == count/2
	})
	podsBefore, containersBefore, err := n.lists(n.context())
	if err != nil || len(podsBefore) != count || len(containersBefore) != count*3/2 {
		t.Fatalf("%d pods, %d containers, %v", len(podsBefore), len(containersBefore), err)
	}
	for _, too := range []bool{false, true} {
		if too {
			kill(t, n.SupervisorPIDs()...)
		}
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
		var podsAfter, containersAfter map[string]proto.Message
		n.Started = func(int) {
			for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
				if podsAfter, containersAfter, err = n.lists(n.context()); err == nil {
					return
				}
			}
		}
		started := n.StartDaemon(context.Background())
		n.Started = nil
		if started != nil || err != nil {
			t.Fatal(started, err)
		}
		wantSame(t, podsBefore, podsAfter)
		wantSame(t, containersBefore, containersAfter)
	}
	for i, p := range pods {
		if i%4 != 3 {
			(&container{pod: p, id: runningIn(t, p)}).exec("true")
		}
	}
}

// runningIn is the id of the container that runs in a pod.
func runningIn(t *testing.T, p *pod) string {
	t.Helper()
	resp, err := p.Runtime.ListContainers(p.context(), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
		PodSandboxId: p.id, State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}}})
	if err != nil || len(resp.GetContainers()) != 1 {
		t.Fatalf("containers that run in pod %s: %v, %v", p.id, resp.GetContainers(), err)
	}
	return resp.GetContainers()[0].GetId()
}

// startSoon starts the daemon, which must not wait until settleTimeout of runtimeservice has ended what hangs.
func (n *node) startSoon() {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 45*time.Second)
	defer cancel()
	if err := n.StartDaemon(ctx); err != nil {
		n.t.Fatal(err)
	}
}

// A container whose removal hangs, because the OCI runtime does, does not hold up the daemon that is started next, nor
// what else is asked of it; it is shown as exited until it can be removed.
func TestHungRemovalDoesNotHoldTheStart(t *testing.T) {
	dir := t.TempDir()
	wrapper, hang := filepath.Join(dir, "runc"), filepath.Join(dir, "hangs")
	script(t, wrapper, fmt.Sprintf(`for a; do [ "$a" = delete ] && while [ -e %s ]; do sleep 0.05; done; done
exec %s "$@"
`, hang, realRunc(t)))
	n := newNode(t, "--runtime", "moody="+wrapper, "--default-runtime", "moody")
	neighbour := n.runPod("neighbour")
	other := neighbour.run("c", forever)
	p := n.runPod("pod")
	c, beside := p.run("c", forever), p.run("beside", forever)
	touch(t, hang)
	_, err := n.Runtime.RemoveContainer(n.within(2*time.Second), &runtimeapi.RemoveContainerRequest{ContainerId: c.id})
	wantError(t, err, codes.DeadlineExceeded)
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	n.startSoon()
	if s := c.status(); s.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Errorf("the container that is being removed is %v", s)
	}
	for _, c := range []*container{other, beside} {
		if s := c.status(); s.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("container %s is %v", c.name, s)
		}
		c.exec("true")
	}
	neighbour.run("late", forever)
	untouch(t, hang)
	c.remove()
	if got := p.run("again", forever).status(); got.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("a container of the pod afterwards: %v", got)
	}
}

// A pod that was being made when the daemon was killed, and whose undoing hangs, holds up neither the next start nor
// other pods; the same request waits for it and then succeeds.
func TestHungUndoingDoesNotHoldTheStart(t *testing.T) {
	n, plugin := pluginNode(t)
	touch(t, filepath.Join(plugin, "add-hangs"))
	config := n.podConfig("pod")
	asked := make(chan error, 1)
	go func() {
		_, err := n.Runtime.RunPodSandbox(n.context(), &runtimeapi.RunPodSandboxRequest{Config: config})
		asked <- err
	}()
	n.eventually("the plugin hangs", func() bool { return len(children(t, n.PID())) > 0 })
	left := children(t, n.PID())
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-asked; err == nil {
		t.Fatal("answered by a daemon that was killed")
	}
	for _, pid := range left {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			t.Fatal(err)
		}
	}
	untouch(t, filepath.Join(plugin, "add-hangs"))
	touch(t, filepath.Join(plugin, "del-hangs"))
	n.startSoon()
	if got := n.pods(); len(got) > 1 { // as not ready, if a minute has passed
		t.Errorf("pods: %v", got)
	}
	go func() {
		_, err := n.Runtime.RunPodSandbox(n.context(), &runtimeapi.RunPodSandboxRequest{Config: config})
		asked <- err
	}()
	n.runPod("late", hostNetwork)
	untouch(t, filepath.Join(plugin, "del-hangs"))
	if err := <-asked; err != nil {
		t.Errorf("the same request: %v", err)
	}
	for _, p := range n.pods() {
		if p.GetMetadata().GetName() == "pod" {
			if err := n.removePod(p.GetId()); err != nil {
				t.Error(err)
			}
		}
	}
}
