package runtimeservice

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Events of the CRI, in the order of an object's life.
const (
	eventCreated = runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT
	eventStarted = runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT
	eventStopped = runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT
	eventDeleted = runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT
)

// maxQueued is how many changes wait for one reader: the lives of some four
// hundred pods. A reader that is further behind has its stream ended.
const maxQueued = 4096

// feed hands what changes in the states that the CRI shows to the streams of
// GetContainerEvents. The setters of pod and container, the only writers of
// those states, tell it of a change while they hold the object's lock: the
// changes of one object stand in every queue in the order in which they happened.
//
// A queue holds changes, not events. An event, with all its statuses, is made
// by the stream that sends it, so that it costs the one who makes the change
// nothing but an entry per reader, and without readers one load. The statuses
// are therefore those of the moment of sending, never older than the change.
//
// A nil feed has no readers.
type feed struct {
	readers atomic.Int32 // len(queues)

	mu     sync.Mutex // the last in the order of locks
	queues map[*queue]struct{}
	last   int64 // time of the last change: no two are equal
}

// change is a change of the state that the CRI shows of a container or, with the pod's own id, of a pod.
type change struct {
	at   int64 // nanoseconds
	pod  *pod
	id   string
	kind runtimeapi.ContainerEventType
}

// queue is what one reader has not taken yet.
type queue struct {
	changes []change      // guarded by feed.mu
	behind  bool          // guarded by feed.mu: more was dropped than is there
	wake    chan struct{} // holds a token after a change
}

func newFeed() *feed { return &feed{queues: map[*queue]struct{}{}} }

// tell enters a change for every reader. The lock of the object that has changed is held.
func (f *feed) tell(p *pod, id string, kinds ...runtimeapi.ContainerEventType) {
	if f == nil || f.readers.Load() == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, kind := range kinds {
		f.last = max(time.Now().UnixNano(), f.last+1)
		for q := range f.queues {
			q.add(change{at: f.last, pod: p, id: id, kind: kind})
		}
	}
}

// add enters a change, or drops all where there is no room: a reader that
// misses one must list everything again anyway. feed.mu is held.
func (q *queue) add(c change) {
	switch {
	case q.behind:
		return
	case len(q.changes) == maxQueued:
		q.changes, q.behind = nil, true
	default:
		q.changes = append(q.changes, c)
	}
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (f *feed) subscribe() *queue {
	q := &queue{wake: make(chan struct{}, 1)}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.queues[q] = struct{}{}
	f.readers.Add(1)
	return q
}

func (f *feed) unsubscribe(q *queue) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.queues, q)
	f.readers.Add(-1)
}

// take empties the queue; behind is true when changes were dropped after those.
func (f *feed) take(q *queue) (changes []change, behind bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	changes, q.changes = q.changes, nil
	return changes, q.behind
}

// GetContainerEvents tells every change of state of pods and containers, from
// the moment at which the client receives the header, until the client has
// enough. The events of one object come in order. A client that does not keep
// up is told so by the end of its stream, errdefs.ErrResourceExhausted: an
// event that it has missed in silence would leave the kubelet with a pod that
// it takes for running, whereas after the error it lists all again.
func (s *containers) GetContainerEvents(_ *runtimeapi.GetEventsRequest, stream runtimeapi.RuntimeService_GetContainerEventsServer) error {
	q := s.feed.subscribe()
	defer s.feed.unsubscribe(q)
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	ctx := stream.Context()
	for {
		changes, behind := s.feed.take(q)
		for _, c := range changes {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err := stream.Send(s.event(c)); err != nil {
				return err
			}
		}
		if behind {
			return fmt.Errorf("the client is more than %d events behind, some are lost: list all again and connect anew: %w", maxQueued, errdefs.ErrResourceExhausted)
		}
		select {
		case <-q.wake:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// event is a change with the statuses as they are now. Its time is that of the
// change, which they are not older than: the kubelet takes it for the time at
// which they were read, and drops an event that is older than what it has.
func (c *core) event(ch change) *runtimeapi.ContainerEventResponse {
	status, _ := ch.pod.status() // what is told of was shown
	return &runtimeapi.ContainerEventResponse{
		ContainerId: ch.id, ContainerEventType: ch.kind, CreatedAt: ch.at,
		PodSandboxStatus: status, ContainersStatuses: c.statuses(ch.pod),
	}
}
