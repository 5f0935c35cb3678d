package flight

import (
	"context"
	"sync"

	"github.com/gantry-cri/gantry/imageservice/internal/guard"
)

// Group is a set of pieces of work under way, by key. Its zero value is ready.
type Group[T any] struct {
	// Drop is called with a result once all callers have released it.
	Drop func(T)

	mu    sync.Mutex
	calls map[string]*call[T]
}

type call[T any] struct {
	done    chan struct{}
	cancel  context.CancelFunc
	value   T
	err     error
	waiters int  // guarded by Group.mu
	given   bool // cancelled since nobody waits; guarded by Group.mu
}

// Do calls work, or waits for the call under way with that key. Each caller
// that gets a result calls release when it has taken from it what it needs.
// When ctx ends Do returns its error; work's context ends with the last
// caller's. Values of the context are those of the first caller.
func (g *Group[T]) Do(ctx context.Context, key string, work func(context.Context) (T, error)) (value T, release func(), err error) {
	for {
		c, joined := g.join(ctx, key, work)
		if !joined { // it is being cancelled: wait until all is undone
			select {
			case <-c.done:
				continue
			case <-ctx.Done():
				return value, nil, context.Cause(ctx)
			}
		}
		select {
		case <-c.done:
		case <-ctx.Done():
			g.leave(c)
			return value, nil, context.Cause(ctx)
		}
		if c.err != nil {
			g.leave(c)
			return value, nil, c.err
		}
		return c.value, sync.OnceFunc(func() { g.leave(c) }), nil
	}
}

// Keys are those of the work under way, for a person to look at.
func (g *Group[T]) Keys() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	keys := make([]string, 0, len(g.calls))
	for k := range g.calls {
		keys = append(keys, k)
	}
	return keys
}

func (g *Group[T]) join(ctx context.Context, key string, work func(context.Context) (T, error)) (c *call[T], joined bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c := g.calls[key]; c != nil {
		if c.given {
			return c, false
		}
		c.waiters++
		return c, true
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c = &call[T]{done: make(chan struct{}), cancel: cancel, waiters: 1}
	if g.calls == nil {
		g.calls = make(map[string]*call[T])
	}
	g.calls[key] = c
	go func() {
		c.err = guard.Run(ctx, func() (err error) {
			c.value, err = work(ctx)
			return err
		})
		cancel()
		g.mu.Lock()
		delete(g.calls, key)
		g.mu.Unlock()
		close(c.done)
	}()
	return c, true
}

// leave takes one caller off. The last one ends the work, or drops the result.
func (g *Group[T]) leave(c *call[T]) {
	g.mu.Lock()
	c.waiters--
	last := c.waiters == 0
	c.given = c.given || last
	g.mu.Unlock()
	if !last {
		return
	}
	c.cancel()
	<-c.done
	if c.err == nil && g.Drop != nil {
		g.Drop(c.value)
	}
}
