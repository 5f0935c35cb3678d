package cni

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"k8s.io/klog/v2"
)

const (
	retriesAtOnce = 2  // a plugin that hangs holds up one
	retriesLogged = 10 // every so many
)

// retries are the attachments whose DEL failed. The caller has the error and may call again at any time; meanwhile the
// DEL is tried again here, so that an address is not lost to a caller that never comes back.
type retries struct {
	pace pace

	mu     sync.Mutex
	failed map[string]*failure // by pod id
	wake   chan struct{}       // has something after every change
}

type failure struct {
	tries   int // failed so far
	wait    time.Duration
	due     time.Time
	running bool
}

func newRetries(p pace) *retries {
	return &retries{pace: p, failed: map[string]*failure{}, wake: make(chan struct{}, 1)}
}

// add notes a DEL that failed.
func (r *retries) add(ctx context.Context, pod string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := r.failed[pod]
	if f == nil {
		f = &failure{wait: r.pace.retry}
		r.failed[pod] = f
	}
	f.tries++
	if f.tries == 1 || f.tries%retriesLogged == 0 {
		klog.FromContext(ctx).Error(err, "A pod's network could not be taken away, trying again in the background", "podID", pod, "tries", f.tries)
	}
	r.postpone(f)
}

// postpone sets the time of the next try, with mu held. The waits differ by a quarter, lest all pods of a plugin that
// was away come at once.
func (r *retries) postpone(f *failure) {
	f.running = false
	f.due = time.Now().Add(f.wait - f.wait/8 + rand.N(f.wait/4+1))
	f.wait = min(2*f.wait, r.pace.retryMost)
	signal(r.wake)
}

// drop forgets a pod that is detached.
func (r *retries) drop(ctx context.Context, pod string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f := r.failed[pod]; f != nil {
		delete(r.failed, pod)
		klog.FromContext(ctx).Info("A pod's network is taken away after all", "podID", pod, "triesBefore", f.tries)
	}
}

// has tells whether the last DEL of the pod failed.
func (r *retries) has(pod string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed[pod] != nil
}

// next is the pod to try now, or how long there is nothing to do.
func (r *retries) next() (pod string, wait time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	wait = time.Hour
	for id, f := range r.failed {
		if left := time.Until(f.due); !f.running && left < wait {
			pod, wait = id, left
		}
	}
	if pod != "" && wait <= 0 {
		r.failed[pod].running = true
		return pod, 0
	}
	return "", wait
}

// later puts a pod off that could not be tried.
func (r *retries) later(pod string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f := r.failed[pod]; f != nil {
		r.postpone(f)
	}
}

// followRetries tries until ctx ends, and ends what is under way then: the record stays for the next start.
func (n *Networks) followRetries(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	slots := make(chan struct{}, retriesAtOnce)
	for {
		pod, wait := n.retries.next()
		if pod == "" {
			select {
			case <-ctx.Done():
				return
			case <-n.retries.wake:
			case <-time.After(wait):
			}
			continue
		}
		select {
		case <-ctx.Done():
			return
		case slots <- struct{}{}:
		}
		running.Go(func() {
			defer func() { <-slots }()
			n.retry(ctx, pod)
		})
	}
}

func (n *Networks) retry(ctx context.Context, pod string) {
	unlock := n.calls.try(pod, nil)
	if unlock == nil {
		n.retries.later(pod) // whoever works on it tries the same
		return
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(ctx, n.pace.del)
	defer cancel()
	_ = n.del(ctx, pod, "") // which notes how it went
}

// signal makes a channel of capacity 1 readable.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
