package oci

import (
	"context"
	"slices"
	"sync"
)

// queue hands out places: so many at a time, and so many of them to one key.
// Those who wait get theirs in turns, one key after the other, and for one key
// in the order of arrival: a key with many in the queue delays another key's
// first by one place's time, not by its own length.
type queue struct {
	size, perKey int

	mu      sync.Mutex
	taken   int
	held    map[string]int             // places by key; none is 0
	waiting map[string][]chan struct{} // closed when the place is given
	turns   []string                   // the keys of waiting, whose turn is next first
}

func newQueue(size, perKey int) *queue {
	return &queue{size: size, perKey: perKey, held: make(map[string]int), waiting: make(map[string][]chan struct{})}
}

// enter returns when key has a place, or with ctx's cause when ctx ends first.
func (q *queue) enter(ctx context.Context, key string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	given := make(chan struct{})
	q.mu.Lock()
	if len(q.waiting[key]) == 0 {
		q.turns = append(q.turns, key)
	}
	q.waiting[key] = append(q.waiting[key], given)
	q.give()
	q.mu.Unlock()
	select {
	case <-given:
		return nil
	case <-ctx.Done():
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if i := slices.Index(q.waiting[key], given); i >= 0 {
		q.remove(key, i)
	} else { // given just now
		q.free(key)
	}
	return context.Cause(ctx)
}

// leave gives a place of key back.
func (q *queue) leave(key string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.free(key)
}

// free is leave with mu held.
func (q *queue) free(key string) {
	q.taken--
	if q.held[key]--; q.held[key] == 0 {
		delete(q.held, key)
	}
	q.give()
}

// give hands out the places that can be. mu is held.
func (q *queue) give() {
	for q.taken < q.size {
		turn := slices.IndexFunc(q.turns, func(key string) bool { return q.held[key] < q.perKey })
		if turn < 0 {
			return
		}
		key := q.turns[turn]
		close(q.waiting[key][0])
		q.taken++
		q.held[key]++
		q.remove(key, 0)
		if i := slices.Index(q.turns, key); i >= 0 { // to the end
			q.turns = append(slices.Delete(q.turns, i, i+1), key)
		}
	}
}

// remove takes the i-th of key out of those who wait. mu is held.
func (q *queue) remove(key string, i int) {
	q.waiting[key] = slices.Delete(q.waiting[key], i, i+1)
	if len(q.waiting[key]) == 0 {
		delete(q.waiting, key)
		q.turns = slices.DeleteFunc(q.turns, func(k string) bool { return k == key })
	}
}
