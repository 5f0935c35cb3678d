package cni

import (
	"context"
	"sync"
	"time"
)

// budget is the time that all DELs together may take while the daemon starts: a plugin that hangs would keep it from
// starting for minutes for every pod of before. What is not done by then is done in the background.
type budget struct {
	mu    sync.Mutex
	left  time.Duration
	ended bool // the start is over
}

// spend bounds one DEL. done takes the time from the budget.
func (b *budget) spend(ctx context.Context) (bounded context.Context, done func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		return ctx, func() {}
	}
	begun := time.Now()
	ctx, cancel := context.WithTimeout(ctx, b.left)
	return ctx, func() {
		cancel()
		b.mu.Lock()
		defer b.mu.Unlock()
		b.left -= time.Since(begun)
	}
}

func (b *budget) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
}
