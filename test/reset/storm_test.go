package reset

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// How many clients there are at a time. Each has pods or images of its own, so that answers about one are in order.
const podWorkers, imageWorkers = 4, 2

// storm is what goes on until the reset.
type storm struct {
	*node
	cut atomic.Bool // the reset has begun: whatever fails is no wonder

	counting sync.Mutex
	done     map[string]int // answers, by kind of request
	left     int            // answers until enough is closed
	enough   chan struct{}
}

// worker is one client of a storm.
type worker struct {
	*storm
	random *rand.Rand
}

// calm is a storm of one request at a time, all of which must succeed.
func (n *node) calm() *storm {
	return &storm{node: n, done: map[string]int{}, enough: make(chan struct{})}
}

// weather makes requests of every kind until so many were answered, and then resets the machine in the middle of others.
func (n *node) weather(random *rand.Rand, answers int) {
	n.t.Helper()
	s := n.calm()
	s.left = answers
	var all sync.WaitGroup
	for i := range podWorkers {
		w := &worker{s, rand.New(rand.NewPCG(random.Uint64(), 0))}
		all.Go(func() {
			for w.podStep(i) {
			}
		})
	}
	for i := range imageWorkers {
		w := &worker{s, rand.New(rand.NewPCG(random.Uint64(), 0))}
		all.Go(func() {
			for w.imageStep(1+i, imageWorkers) {
			}
		})
	}
	pause := rand.New(rand.NewPCG(random.Uint64(), 0))
	over := make(chan struct{})
	all.Go(func() {
		for {
			select {
			case <-over:
				return
			case <-time.After(time.Duration(pause.IntN(4000)) * time.Millisecond):
			}
			err := n.synced(func() error { _, err := n.try("sync"); return err })
			if !s.went("sync", err) {
				return
			}
		}
	})
	failed := make(chan struct{})
	go func() { all.Wait(); close(failed) }()
	select {
	case <-s.enough:
	case <-failed: // and said so
	case <-time.After(patience):
		n.t.Errorf("only %v was answered, of %d", s.done, answers)
	}
	time.Sleep(time.Duration(random.IntN(300)) * time.Millisecond)
	s.cut.Store(true)
	close(over)
	n.reset()
	all.Wait()
	n.t.Logf("reset after %v", s.done)
}

// went counts what was answered, and says whether to go on. A failure is the test's if there was no reset.
func (s *storm) went(what string, err error) bool {
	if err != nil {
		if !s.cut.Load() {
			s.t.Errorf("in the storm: %s: %v", what, err)
		}
		return false
	}
	s.counting.Lock()
	defer s.counting.Unlock()
	s.done[what]++
	if s.left--; s.left == 0 {
		close(s.enough)
	}
	return true
}

// call makes one request, which makes the objects what to says.
func (s *storm) call(what string, to state, durable bool, do func(context.Context) error, objects ...*object) bool {
	if s.cut.Load() {
		return false
	}
	s.ask(to, objects...)
	err := s.request(do)
	if err == nil {
		s.answered(durable, objects...)
	}
	return s.went(what, err)
}

// podStep is one request of the worker's, about one of its pods.
func (w *worker) podStep(i int) bool {
	var mine []*pod
	w.mu.Lock()
	for _, p := range w.pods {
		if p.worker() == i && p.now() == there {
			mine = append(mine, p)
		}
	}
	w.mu.Unlock()
	if len(mine) == 0 || len(mine) < 2 && w.random.IntN(4) == 0 {
		return w.runPod(w.podConfig(i, len(mine) == 0), w.random)
	}
	p := mine[w.random.IntN(len(mine))]
	if len(p.ctrs) < 2 {
		return w.create(p, w.random)
	}
	c := p.ctrs[w.random.IntN(len(p.ctrs))]
	switch was := w.is(&c.object); w.random.IntN(8) {
	case 0:
		return w.removePod(p)
	case 1, 2:
		return was == gone || w.call("RemoveContainer", gone, false, func(ctx context.Context) error {
			_, err := w.Runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: c.id})
			return err
		}, &c.object)
	case 3:
		return was != running || w.call("StopContainer", stopped, false, func(ctx context.Context) error {
			_, err := w.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c.id})
			return err
		}, &c.object)
	case 4:
		return was == gone || w.look(c)
	case 5:
		return was != running || c.code >= 0 || w.went("ExecSync", w.request(func(ctx context.Context) error {
			_, err := w.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"sh", "-c", ":"}, Timeout: 60})
			return err
		}))
	default:
		return was != created || w.call("StartContainer", running, false, func(ctx context.Context) error {
			_, err := w.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.id})
			return err
		}, &c.object)
	}
}

// look asks for a container's status, and notes its end.
func (w *worker) look(c *container) bool {
	var resp *runtimeapi.ContainerStatusResponse
	if !w.went("ContainerStatus", w.request(func(ctx context.Context) (err error) {
		resp, err = w.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.id})
		return err
	})) {
		return false
	}
	if s := resp.GetStatus(); w.is(&c.object) == running && s.GetState() == runtimeapi.ContainerState_CONTAINER_EXITED {
		if c.code < 0 || s.GetExitCode() != c.code {
			w.t.Errorf("container %s ended with %d, %s, %s; its script's is %d", c.id, s.GetExitCode(), s.GetReason(), s.GetMessage(), c.code)
		}
		w.ask(ended, &c.object)
		w.answered(false, &c.object)
	}
	return true
}

// imageStep pulls or removes one of the worker's images.
func (w *worker) imageStep(first, step int) bool {
	i := first + step*w.random.IntN((imageCount-first+step-1)/step)
	spec := &runtimeapi.ImageSpec{Image: w.registry.name(i)}
	if w.is(w.images[i]) == gone {
		return w.call("PullImage", there, true, func(ctx context.Context) error {
			_, err := w.Image.PullImage(ctx, &runtimeapi.PullImageRequest{Image: spec})
			return err
		}, w.images[i])
	}
	return w.call("RemoveImage", gone, true, func(ctx context.Context) error {
		_, err := w.Image.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: spec})
		return err
	}, w.images[i])
}
