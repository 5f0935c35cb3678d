package e2e

import (
	"context"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type (
	event       = runtimeapi.ContainerEventResponse
	eventStream = runtimeapi.RuntimeService_GetContainerEventsClient
)

// events subscribes; when it returns, no later change is missed.
func (n *node) events(ctx context.Context) eventStream {
	n.t.Helper()
	stream, err := n.Runtime.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	if err == nil {
		_, err = stream.Header()
	}
	if err != nil {
		n.t.Fatalf("subscribing to events: %v", err)
	}
	return stream
}

// eventsUntil receives events up to the first of a kind about an object.
func (n *node) eventsUntil(stream eventStream, id string, kind runtimeapi.ContainerEventType) []*event {
	n.t.Helper()
	var all []*event
	for {
		ev, err := stream.Recv()
		if err != nil {
			n.t.Fatalf("after %d events, waiting for %v of %s: %v", len(all), kind, id, err)
		}
		all = append(all, ev)
		if ev.GetContainerId() == id && ev.GetContainerEventType() == kind {
			return all
		}
	}
}

// about is what events say about one object, in their order.
func about(all []*event, id string) []runtimeapi.ContainerEventType {
	var kinds []runtimeapi.ContainerEventType
	for _, ev := range all {
		if ev.GetContainerId() == id {
			kinds = append(kinds, ev.GetContainerEventType())
		}
	}
	return kinds
}

// statusIn is the status of a container in an event.
func statusIn(ev *event, id string) *runtimeapi.ContainerStatus {
	for _, st := range ev.GetContainersStatuses() {
		if st.GetId() == id {
			return st
		}
	}
	return nil
}

var life = []runtimeapi.ContainerEventType{
	runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT,
	runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT,
}

// The lives of a pod and its containers are told whole and in order, each event with the pod and every container.
func TestContainerEvents(t *testing.T) {
	n := newNode(t)
	first, second := n.events(n.context()), n.events(n.context())
	p := n.runPod("pod")
	c := p.run("short", "exit 3")
	c.waitExit()
	killed := p.run("killed", forever)
	killed.stop(0)
	never := p.create("never-started", forever)
	never.remove()
	if err := n.removePod(p.id); err != nil {
		t.Fatal(err)
	}
	all := n.eventsUntil(first, p.id, life[3])
	for id, want := range map[string][]runtimeapi.ContainerEventType{p.id: life, c.id: life, killed.id: life, never.id: {life[0], life[2], life[3]}} {
		if got := about(all, id); !slices.Equal(got, want) {
			t.Errorf("events of %s: %v, want %v", id, got, want)
		}
	}
	var last int64
	for _, ev := range all {
		id, kind, st := ev.GetContainerId(), ev.GetContainerEventType(), statusIn(ev, ev.GetContainerId())
		if ev.GetPodSandboxStatus().GetId() != p.id || ev.GetPodSandboxStatus().GetMetadata().GetUid() != "uid-pod" {
			t.Errorf("%v of %s is about pod %v", kind, id, ev.GetPodSandboxStatus())
		}
		if ev.GetCreatedAt() <= last {
			t.Errorf("%v of %s is not later than the event before it", kind, id)
		}
		last = ev.GetCreatedAt()
		switch {
		case kind != life[2]:
		case id == p.id:
			if ev.GetPodSandboxStatus().GetState() != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
				t.Error("the stopped pod is shown as ready")
			}
		case st != nil && (st.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED || id == c.id && st.GetExitCode() != 3):
			t.Errorf("stopped %s is shown as %v", id, st)
		}
	}
	if again := n.eventsUntil(second, p.id, life[3]); len(again) != len(all) {
		t.Errorf("a second reader sees %d events, the first %d", len(again), len(all))
	}
}

// An event shows what has changed when it is read at once, and the other containers of the pod beside it.
func TestEventsAreComplete(t *testing.T) {
	n := newNode(t)
	p := n.runPod("pod")
	other := p.run("other", forever)
	stream := n.events(n.context())
	c := p.create("c", forever)
	created := n.eventsUntil(stream, c.id, life[0])
	c.start()
	started := n.eventsUntil(stream, c.id, life[1])
	c.stop(0)
	stopped := n.eventsUntil(stream, c.id, life[2])
	for i, ev := range slices.Concat(created, started, stopped) {
		want := []runtimeapi.ContainerState{0, 1, 2}[i] // created, running, exited
		if got := statusIn(ev, c.id); got == nil || got.GetState() != want || want == 2 && (got.GetExitCode() != 137 || got.GetFinishedAt() == 0) {
			t.Errorf("%v shows %v", ev.GetContainerEventType(), got)
		}
		if got := statusIn(ev, other.id); got.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("%v shows the pod's other container as %v", ev.GetContainerEventType(), got)
		}
	}
	resp, err := n.Runtime.PodSandboxStatus(n.context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil || len(resp.GetContainersStatuses()) != 2 || resp.GetTimestamp() <= stopped[0].GetCreatedAt() {
		t.Errorf("the pod's status has %d containers, time %d: %v", len(resp.GetContainersStatuses()), resp.GetTimestamp(), err)
	}
}

// A daemon that ends tells its readers, and what happens to containers afterwards is told by the next one.
func TestEventsAndRestart(t *testing.T) {
	n := newNode(t)
	c := n.runPod("pod").run("c", forever)
	stream := n.events(n.context())
	if err := n.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the stream ends with %v, want Unavailable", err)
	}
	stream = n.events(n.context())
	c.stop(0)
	if got := n.eventsUntil(stream, c.id, life[2]); len(got) != 1 {
		t.Errorf("%d events, want the stop alone", len(got))
	}
}
