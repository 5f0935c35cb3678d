package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// idsOf receives a stream to its end and returns the ids of its items as they came, and the number of messages.
func idsOf[M, T any](t *testing.T, stream grpc.ServerStreamingClient[M], err error, items func(*M) []T, id func(T) string) (all []string, messages int) {
	t.Helper()
	for ; err == nil; messages++ {
		var m *M
		if m, err = stream.Recv(); err != nil {
			break
		}
		if len(items(m)) == 0 {
			t.Error("a message without items")
		}
		for _, item := range items(m) {
			all = append(all, id(item))
		}
	}
	if !errors.Is(err, io.EOF) {
		t.Errorf("the stream ends with %v, want EOF", err)
	}
	return all, messages
}

func (n *node) streamedContainers(f *runtimeapi.ContainerFilter) (all []string, messages int) {
	n.t.Helper()
	stream, err := n.Runtime.StreamContainers(n.context(), &runtimeapi.StreamContainersRequest{Filter: f})
	return idsOf(n.t.(*testing.T), stream, err, (*runtimeapi.StreamContainersResponse).GetContainers, (*runtimeapi.Container).GetId)
}

// A streamed list has what the list has, in the same order, each once, and nothing at all when nothing matches.
func TestStreamedLists(t *testing.T) {
	n := newNode(t)
	if got, messages := n.streamedContainers(nil); got != nil || messages != 0 {
		t.Errorf("without containers: %d messages, %v", messages, got)
	}
	p, other := n.runPod("pod"), n.runPod("other")
	var want []string
	for i := range 3 {
		want = append(want, p.run(fmt.Sprint("c", i), forever, func(c *runtimeapi.ContainerConfig) {
			// Together more than a client takes in one message that has not raised its limit.
			c.Annotations = map[string]string{"big": strings.Repeat("x", 700<<10)}
		}).id)
	}
	alone := other.run("alone", forever)

	got, messages := n.streamedContainers(&runtimeapi.ContainerFilter{PodSandboxId: p.id})
	if !slices.Equal(got, want) || messages < 2 {
		t.Errorf("containers of the pod: %v in %d messages, want %v", got, messages, want)
	}
	if got, _ := n.streamedContainers(nil); !slices.Equal(got, append(slices.Clone(want), alone.id)) {
		t.Errorf("all containers: %v", got)
	}
	if got, messages := n.streamedContainers(&runtimeapi.ContainerFilter{Id: p.id}); got != nil || messages != 0 {
		t.Errorf("containers with the id of a pod: %v in %d messages", got, messages)
	}
	pods, err := n.Runtime.StreamPodSandboxes(n.context(), &runtimeapi.StreamPodSandboxesRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": "other"}}})
	if got, _ := idsOf(t, pods, err, (*runtimeapi.StreamPodSandboxesResponse).GetPodSandboxes, (*runtimeapi.PodSandbox).GetId); !slices.Equal(got, []string{other.id}) {
		t.Errorf("pods by label: %v", got)
	}
	stats, err := n.Runtime.StreamContainerStats(n.context(), &runtimeapi.StreamContainerStatsRequest{Filter: &runtimeapi.ContainerStatsFilter{PodSandboxId: p.id}})
	if got, _ := idsOf(t, stats, err, (*runtimeapi.StreamContainerStatsResponse).GetContainerStats, func(s *runtimeapi.ContainerStats) string { return s.GetAttributes().GetId() }); !slices.Equal(got, want) {
		t.Errorf("stats of the pod's containers: %v", got)
	}
	podStats, err := n.Runtime.StreamPodSandboxStats(n.context(), &runtimeapi.StreamPodSandboxStatsRequest{Filter: &runtimeapi.PodSandboxStatsFilter{Id: other.id}})
	if got, _ := idsOf(t, podStats, err, (*runtimeapi.StreamPodSandboxStatsResponse).GetPodSandboxStats, func(s *runtimeapi.PodSandboxStats) string { return s.GetAttributes().GetId() }); !slices.Equal(got, []string{other.id}) {
		t.Errorf("stats of a pod: %v", got)
	}
	none, err := n.Image.StreamImages(n.context(), &runtimeapi.StreamImagesRequest{Filter: &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: "none.example/such"}}})
	if got, messages := idsOf(t, none, err, (*runtimeapi.StreamImagesResponse).GetImages, (*runtimeapi.Image).GetId); got != nil || messages != 0 {
		t.Errorf("images by a name that none has: %v in %d messages", got, messages)
	}
	images, err := n.Image.StreamImages(n.context(), &runtimeapi.StreamImagesRequest{})
	listed, listErr := n.Image.ListImages(n.context(), &runtimeapi.ListImagesRequest{})
	if got, _ := idsOf(t, images, err, (*runtimeapi.StreamImagesResponse).GetImages, (*runtimeapi.Image).GetId); listErr != nil || len(got) != 1 || got[0] != listed.GetImages()[0].GetId() {
		t.Errorf("images: %v, %v", got, listErr)
	}
}

// dial makes a connection of its own, which the caller closes.
func (n *node) dial(t *testing.T) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+n.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// openFiles counts the daemon's descriptors.
func (n *node) openFiles() int {
	n.t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", n.PID()))
	if err != nil {
		n.t.Fatal(err)
	}
	return len(fds)
}

// Clients that leave, or stay without reading, hold up nobody and leave nothing in the daemon.
func TestSecurityStreams(t *testing.T) {
	n := newNode(t)
	p := n.runPod("pod")
	before := n.openFiles()
	back := func(what string) {
		t.Helper()
		n.eventually("the daemon's descriptors are as before "+what, func() bool { return n.openFiles() <= before })
	}
	t.Run("2.7-event-stream-cycles", func(t *testing.T) {
		for range 1000 {
			ctx, cancel := context.WithCancel(t.Context())
			n.events(ctx)
			cancel()
		}
		back("1,000 readers")
	})
	t.Run("2.7-stream-client-vanishes", func(t *testing.T) {
		for _, step := range []struct {
			name string
			use  func(context.Context, runtimeapi.RuntimeServiceClient) error
		}{
			{"before a request", func(context.Context, runtimeapi.RuntimeServiceClient) error { return nil }},
			{"after the request", func(ctx context.Context, c runtimeapi.RuntimeServiceClient) error {
				_, err := c.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
				return err
			}},
			{"after the header", func(ctx context.Context, c runtimeapi.RuntimeServiceClient) error {
				stream, err := c.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
				if err == nil {
					_, err = stream.Header()
				}
				return err
			}},
			{"in a list", func(ctx context.Context, c runtimeapi.RuntimeServiceClient) error {
				stream, err := c.StreamPodSandboxes(ctx, &runtimeapi.StreamPodSandboxesRequest{})
				if err == nil {
					_, err = stream.Recv()
				}
				return err
			}},
		} {
			for range 20 {
				conn := n.dial(t)
				if err := step.use(t.Context(), runtimeapi.NewRuntimeServiceClient(conn)); err != nil {
					t.Errorf("%s: %v", step.name, err)
				}
				if err := conn.Close(); err != nil {
					t.Error(err)
				}
			}
			back("clients vanished " + step.name)
		}
	})
	t.Run("2.7-slow-event-reader", func(t *testing.T) {
		conn := n.dial(t)
		defer conn.Close()
		slow := &node{Instance: n.Instance, t: t}
		stream, err := runtimeapi.NewRuntimeServiceClient(conn).GetContainerEvents(t.Context(), &runtimeapi.GetEventsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		quick := slow.events(t.Context())
		// More than gRPC buffers for one that does not read.
		c := p.create("c", forever, func(c *runtimeapi.ContainerConfig) {
			c.Annotations = map[string]string{"big": strings.Repeat("x", 200<<10)}
		})
		var last string
		for i := range 8 {
			more := p.create(fmt.Sprint("more-", i), forever)
			more.remove()
			slow.eventsUntil(quick, more.id, life[3])
			last = more.id
		}
		// It misses nothing either, for it is not far behind.
		if got := slow.eventsUntil(stream, last, life[3]); len(got) != 1+8*3 {
			t.Errorf("the slow reader sees %d events", len(got))
		}
		c.remove()
	})
}
