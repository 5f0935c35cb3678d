package runtimeservice

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/runtimeservice/lifecycle"
)

// reader is the server's side of a stream of events.
type reader struct {
	runtimeapi.RuntimeService_GetContainerEventsServer
	ctx   context.Context
	begun chan struct{}
	send  func(*runtimeapi.ContainerEventResponse) error
}

func (r *reader) Context() context.Context                         { return r.ctx }
func (r *reader) SendHeader(metadata.MD) error                     { close(r.begun); return nil }
func (r *reader) Send(ev *runtimeapi.ContainerEventResponse) error { return r.send(ev) }

// books is a service of memory alone, with what the tests of events need.
func books() *containers { return &containers{&core{index: newIndex(), feed: newFeed()}} }

// read begins a stream of events, until cancel; its error is in ended.
func read(t *testing.T, s *containers, send func(*runtimeapi.ContainerEventResponse) error) (cancel func(), ended chan error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r := &reader{ctx: ctx, begun: make(chan struct{}), send: send}
	ended = make(chan error, 1)
	go func() { ended <- s.GetContainerEvents(&runtimeapi.GetEventsRequest{}, r) }()
	<-r.begun
	return cancel, ended
}

func (s *containers) testPod(name string) *pod {
	m := &runtimeapi.PodSandboxMetadata{Name: name, Uid: "uid-" + name, Namespace: "n"}
	p := &pod{
		id: "pod-" + name, key: podKey{name: name}, feed: s.feed, createdAt: s.index.now(), op: newOpLock(),
		config: &runtimeapi.PodSandboxConfig{Metadata: m}, state: lifecycle.PodCreating,
	}
	s.index.addPod(p)
	return p
}

func (s *containers) testContainer(p *pod, name string) *container {
	c := &container{
		id: p.id + "-" + name, key: containerKey{pod: p.id, name: name}, pod: p, createdAt: s.index.now(), op: newOpLock(),
		exited: make(chan struct{}), state: lifecycle.ContainerCreating,
		config: &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: name}},
	}
	s.index.addContainer(c)
	return c
}

// live leads a container through its life, as the RPCs and the exit do, on goroutines that race.
func (s *containers) live(t *testing.T, p *pod, name string) {
	c := s.testContainer(p, name)
	for _, e := range []lifecycle.ContainerEvent{lifecycle.ContainerMade, lifecycle.ContainerStart} {
		if err := c.on(e); err != nil {
			t.Error(err)
		}
	}
	started := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		<-started
		c.mu.Lock()
		defer c.mu.Unlock()
		c.exitCode, c.finishedAt = 7, s.index.now()
		if err := c.onLocked(lifecycle.ContainerExit); err != nil {
			t.Error(err)
		}
	})
	c.mu.Lock()
	if err := c.onLocked(lifecycle.ContainerStarted); err != nil {
		t.Error(err)
	}
	close(started)
	c.startedAt = s.index.now()
	c.mu.Unlock()
	wg.Wait()
	if err := c.on(lifecycle.ContainerRemove); err != nil {
		t.Error(err)
	}
	s.index.removeContainer(c)
	c.end()
}

// history checks the events of one reader as they come.
type history struct {
	kinds map[string][]runtimeapi.ContainerEventType
	last  int64
	err   error
}

func (h *history) see(ev *runtimeapi.ContainerEventResponse) error {
	id, kind := ev.GetContainerId(), ev.GetContainerEventType()
	if h.kinds == nil {
		h.kinds = map[string][]runtimeapi.ContainerEventType{}
	}
	h.kinds[id] = append(h.kinds[id], kind)
	sandbox := ev.GetPodSandboxStatus()
	if sandbox.GetMetadata().GetUid() == "" {
		h.err = fmt.Errorf("%v of %s without its pod", kind, id)
	}
	if ev.GetCreatedAt() <= h.last {
		h.err = fmt.Errorf("%v of %s is not later than the event before", kind, id)
	}
	h.last = ev.GetCreatedAt()
	if id == sandbox.GetId() {
		if ready := sandbox.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY; ready && (kind == eventStopped || kind == eventDeleted) {
			h.err = fmt.Errorf("%v of pod %s says that it is ready", kind, id)
		}
		return nil
	}
	i := slices.IndexFunc(ev.GetContainersStatuses(), func(st *runtimeapi.ContainerStatus) bool { return st.GetId() == id })
	switch {
	case kind == eventDeleted && i >= 0:
		h.err = fmt.Errorf("deleted %s is among the statuses", id)
	case kind == eventStopped && i >= 0:
		st := ev.GetContainersStatuses()[i]
		if st.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED || st.GetExitCode() != 7 || st.GetFinishedAt() == 0 {
			h.err = fmt.Errorf("stopped %s is shown as %v", id, st)
		}
	}
	return nil
}

var whole = []runtimeapi.ContainerEventType{eventCreated, eventStarted, eventStopped, eventDeleted}

// A hundred containers change at once, and every one of many readers sees each life whole and in order.
func TestEventsOfManyContainers(t *testing.T) {
	s := books()
	const readers, podCount, perPod = 20, 10, 10
	histories := make([]history, readers)
	ends := make([]func() error, readers)
	var done sync.WaitGroup
	for i := range histories {
		done.Add(1)
		pods := 0
		cancel, ended := read(t, s, func(ev *runtimeapi.ContainerEventResponse) error {
			if ev.GetContainerEventType() == eventDeleted && ev.GetContainerId() == ev.GetPodSandboxStatus().GetId() {
				if pods++; pods == podCount {
					defer done.Done()
				}
			}
			return histories[i].see(ev)
		})
		ends[i] = func() error { cancel(); return <-ended }
	}
	var wg sync.WaitGroup
	for i := range podCount {
		wg.Go(func() {
			p := s.testPod(fmt.Sprint(i))
			p.set(lifecycle.PodReady)
			var all sync.WaitGroup
			for j := range perPod {
				all.Go(func() { s.live(t, p, fmt.Sprint(j)) })
			}
			all.Wait()
			p.set(lifecycle.PodStopping)
			p.set(lifecycle.PodNotReady)
			p.set(lifecycle.PodRemoving)
			s.index.removePod(p)
			p.set(lifecycle.PodGone)
		})
	}
	wg.Wait()
	done.Wait()
	for i, end := range ends {
		if err := end(); !errors.Is(err, context.Canceled) {
			t.Errorf("reader %d ends with %v", i, err)
		}
		if h := histories[i]; h.err != nil || len(h.kinds) != podCount*(1+perPod) {
			t.Errorf("reader %d saw %d lives: %v", i, len(h.kinds), h.err)
		}
		for id, kinds := range histories[i].kinds {
			if !slices.Equal(kinds, whole) {
				t.Errorf("reader %d saw of %s: %v", i, id, kinds)
			}
		}
	}
	if n := s.feed.readers.Load(); n != 0 || len(s.feed.queues) != 0 {
		t.Errorf("%d readers are left", n)
	}
}

// What never was shown, or does not change for the CRI, is no event.
func TestChangesThatAreNotShown(t *testing.T) {
	s := books()
	q := s.feed.subscribe()
	defer s.feed.unsubscribe(q)
	p := s.testPod("p")
	undone := s.testContainer(p, "undone")
	undone.end()
	p.set(lifecycle.PodReady)
	c := s.testContainer(p, "c")
	for _, e := range []lifecycle.ContainerEvent{lifecycle.ContainerMade, lifecycle.ContainerStart, lifecycle.ContainerUndone, lifecycle.ContainerStart, lifecycle.ContainerStartFailed, lifecycle.ContainerExit} {
		if err := c.on(e); err != nil {
			t.Fatal(err)
		}
	}
	p.set(lifecycle.PodStopping)
	p.set(lifecycle.PodNotReady)
	other := s.testPod("never made")
	other.set(lifecycle.PodGone)
	changes, behind := s.feed.take(q)
	var got []string
	for _, ch := range changes {
		got = append(got, ch.id+" "+strings.TrimSuffix(strings.TrimPrefix(ch.kind.String(), "CONTAINER_"), "_EVENT"))
	}
	want := []string{"pod-p CREATED", "pod-p STARTED", "pod-p-c CREATED", "pod-p-c STOPPED", "pod-p STOPPED"}
	if !slices.Equal(got, want) || behind {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestSecurityEvents(t *testing.T) {
	t.Run("2.7-slow-reader", readerThatDoesNotRead)
	t.Run("2.7-reader-vanishes", readersThatVanish)
}

// A thousand clients that leave, in every way there is, leave nothing.
func readersThatVanish(t *testing.T) {
	s := books()
	p := s.testPod("p")
	server := grpc.NewServer()
	defer server.Stop()
	runtimeapi.RegisterRuntimeServiceServer(server, &Service{containers: s})
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.Serve(l) }() // ends with Stop
	before := runtime.NumGoroutine()
	for i := range 1000 {
		conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		stream, err := runtimeapi.NewRuntimeServiceClient(conn).GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
		if err == nil && i%4 > 0 {
			_, err = stream.Header()
		}
		if i%4 > 1 {
			p.set(lifecycle.PodReady)
			p.set(lifecycle.PodStopping)
		}
		if err == nil && i%4 > 2 {
			_, err = stream.Recv()
		}
		if err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			cancel()
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		cancel()
	}
	left := func() int { return int(s.feed.readers.Load()) + max(0, runtime.NumGoroutine()-before) }
	for deadline := time.Now().Add(time.Minute); left() > 0 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
	}
	if left() > 0 {
		t.Errorf("%d readers and %d goroutines are left", s.feed.readers.Load(), runtime.NumGoroutine()-before)
	}
}

// A reader that stands still holds up nobody, costs a bounded queue, and learns that it has missed something.
func readerThatDoesNotRead(t *testing.T) {
	s := books()
	p := s.testPod("p")
	release := make(chan struct{})
	var got int
	_, ended := read(t, s, func(*runtimeapi.ContainerEventResponse) error { got++; <-release; return nil })
	for range maxQueued {
		p.set(lifecycle.PodReady)
		p.set(lifecycle.PodStopping)
	}
	s.feed.mu.Lock()
	for q := range s.feed.queues {
		if q.changes != nil || !q.behind {
			t.Errorf("%d changes are kept for a reader that is behind", len(q.changes))
		}
	}
	s.feed.mu.Unlock()
	close(release)
	q := s.feed.subscribe()
	p.set(lifecycle.PodReady)
	if changes, behind := s.feed.take(q); len(changes) != 2 || behind {
		t.Errorf("a new reader gets %d changes, behind: %v", len(changes), behind)
	}
	s.feed.unsubscribe(q)
	select {
	case err := <-ended:
		if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "list all again") || got > maxQueued {
			t.Errorf("after %d events: %v", got, err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the stream of a reader that has missed something goes on")
	}
}

// Without readers a change costs no memory.
func TestChangeWithoutReaders(t *testing.T) {
	s := books()
	p := s.testPod("p")
	if n := testing.AllocsPerRun(100, func() { p.set(lifecycle.PodReady); p.set(lifecycle.PodStopping) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// Every item is sent once, no message is empty or over the size, and an item that is larger goes alone.
func TestBatches(t *testing.T) {
	item := func(i, size int) *runtimeapi.Container {
		return &runtimeapi.Container{Id: fmt.Sprint(i), ImageRef: strings.Repeat("x", size)}
	}
	for name, items := range map[string][]*runtimeapi.Container{
		"none": nil,
		"one":  {item(0, 1)},
		"huge": {item(0, 10), item(1, 3*maxBatch), item(2, 10), item(3, maxBatch/2), item(4, maxBatch/2), item(5, 1)},
	} {
		var got []string
		err := batches(t.Context(), items, func(part []*runtimeapi.Container) error {
			size := 0
			for _, c := range part {
				got = append(got, c.GetId())
				size += proto.Size(c)
			}
			if len(part) == 0 || len(part) > 1 && size > maxBatch {
				t.Errorf("%s: a message with %d items, %d bytes", name, len(part), size)
			}
			return nil
		})
		var want []string
		for _, c := range items {
			want = append(want, c.GetId())
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	sent := 0
	err := batches(ctx, []*runtimeapi.Container{item(0, maxBatch), item(1, maxBatch)}, func([]*runtimeapi.Container) error { sent++; cancel(); return nil })
	if sent != 1 || !errors.Is(err, context.Canceled) {
		t.Errorf("after its context has ended: %d messages, %v", sent, err)
	}
}

func BenchmarkEvent(b *testing.B) {
	for _, readers := range []int{0, 1, 10} {
		b.Run(fmt.Sprintf("%d readers", readers), func(b *testing.B) {
			s := books()
			p := s.testPod("p")
			var queues []*queue
			for range readers {
				q := s.feed.subscribe()
				defer s.feed.unsubscribe(q)
				queues = append(queues, q)
			}
			b.ReportAllocs()
			for i := range b.N {
				s.feed.tell(p, p.id, eventStarted)
				if i%1000 == 999 {
					for _, q := range queues {
						s.feed.take(q)
					}
				}
			}
		})
	}
}
