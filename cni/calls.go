package cni

import (
	"context"
	"fmt"
	"sync"
)

// calls keeps apart what must not happen at once: two calls for one pod, and a network's GC beside the making of a
// new attachment to it, which the GC would take for a leftover. It never runs anything with mu held.
type calls struct {
	mu         sync.Mutex
	busy       map[string]holder        // by pod id
	collecting map[string]chan struct{} // network -> closed when its GC ends
}

type holder struct {
	done  chan struct{}
	yield context.CancelFunc // nil, or ends the call for one that matters more
}

func newCalls() *calls {
	return &calls{busy: map[string]holder{}, collecting: map[string]chan struct{}{}}
}

// lock waits for the call that is under way for the pod, or ends it where it yields.
func (c *calls) lock(ctx context.Context, pod string) (unlock func(), err error) {
	for {
		c.mu.Lock()
		other, busy := c.busy[pod]
		if !busy {
			unlock := c.take(pod, nil)
			c.mu.Unlock()
			return unlock, nil
		}
		c.mu.Unlock()
		if other.yield != nil {
			other.yield()
		}
		select {
		case <-other.done:
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for another call for the pod: %w", ctx.Err())
		}
	}
}

// try does not wait: unlock is nil when a call is under way for the pod.
func (c *calls) try(pod string, yield context.CancelFunc) (unlock func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, busy := c.busy[pod]; busy {
		return nil
	}
	return c.take(pod, yield)
}

func (c *calls) take(pod string, yield context.CancelFunc) (unlock func()) {
	own := holder{done: make(chan struct{}), yield: yield}
	c.busy[pod] = own
	return func() {
		c.mu.Lock()
		delete(c.busy, pod)
		c.mu.Unlock()
		close(own.done)
	}
}

// collect begins the GC of a network. Until done is called no attachment to it begins; those that may have begun are
// pods.
func (c *calls) collect(network string) (pods []string, done func()) {
	end := make(chan struct{})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.collecting[network] = end
	for pod := range c.busy {
		pods = append(pods, pod)
	}
	return pods, func() {
		c.mu.Lock()
		delete(c.collecting, network)
		c.mu.Unlock()
		close(end)
	}
}

// begin waits for the GC of the network. The caller has locked its pod: a GC that begins afterwards is told of it.
func (c *calls) begin(ctx context.Context, network string) error {
	for {
		c.mu.Lock()
		end := c.collecting[network]
		c.mu.Unlock()
		if end == nil {
			return nil
		}
		select {
		case <-end:
		case <-ctx.Done():
			return fmt.Errorf("waiting for the GC of network %s: %w", network, ctx.Err())
		}
	}
}
