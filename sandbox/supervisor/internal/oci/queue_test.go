package oci

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
)

// inUse is how many places are taken.
func (q *queue) inUse() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.taken
}

// Keys have their turns one after the other, those of one key in their order, and one key never has all places.
func TestQueueTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(2, 1)
		var mu sync.Mutex
		var got []string
		var all sync.WaitGroup
		enter := func(key, name string) {
			all.Go(func() {
				if err := q.enter(t.Context(), key); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				got = append(got, name)
				mu.Unlock()
			})
			synctest.Wait()
		}
		for _, x := range []struct{ key, name string }{{"a", "a1"}, {"a", "a2"}, {"a", "a3"}, {"b", "b1"}, {"b", "b2"}, {"c", "c1"}} {
			enter(x.key, x.name)
		}
		check := func(want ...string) {
			t.Helper()
			if !slices.Equal(got, want) {
				t.Errorf("%v, want %v", got, want)
			}
		}
		leave := func(key string) {
			q.leave(key)
			synctest.Wait()
		}
		check("a1", "b1") // a second place is not for a
		leave("b")
		check("a1", "b1", "b2") // a has its share; b2 came before c1
		leave("b")
		check("a1", "b1", "b2", "c1") // still
		leave("a")
		check("a1", "b1", "b2", "c1", "a2")
		leave("c")
		leave("a")
		check("a1", "b1", "b2", "c1", "a2", "a3")
		leave("a")
		// Many of one key before one of another: that one is next but one.
		if err := q.enter(t.Context(), "z"); err != nil {
			t.Fatal(err)
		}
		if err := q.enter(t.Context(), "y"); err != nil {
			t.Fatal(err)
		}
		got = nil
		for _, name := range []string{"a1", "a2", "a3", "a4"} {
			enter("a", name)
		}
		enter("b", "b1")
		leave("z")
		leave("a")
		check("a1", "b1")
		leave("b")
		leave("a")
		leave("a")
		leave("a")
		leave("y")
		all.Wait()
		if q.inUse() != 0 || len(q.held)+len(q.waiting)+len(q.turns) != 0 {
			t.Errorf("left: %+v", q)
		}
	})
}

// Who stops waiting takes no place, not even one that he was just given.
func TestQueueCancelled(t *testing.T) {
	cause := errors.New("cause")
	for range 200 {
		q := newQueue(1, 1)
		if err := q.enter(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		var got error
		var all sync.WaitGroup
		all.Go(func() { got = q.enter(ctx, "b") })
		all.Go(func() { cancel(cause) })
		all.Go(func() { q.leave("a") })
		all.Wait()
		switch {
		case got == nil:
			q.leave("b")
		case !errors.Is(got, cause):
			t.Fatal(got)
		}
		if q.inUse() != 0 || len(q.held)+len(q.waiting)+len(q.turns) != 0 {
			t.Fatalf("left: %+v", q)
		}
	}
	q := newQueue(1, 1)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if err := q.enter(ctx, "a"); !errors.Is(err, cause) || q.inUse() != 0 {
		t.Errorf("cancelled before: %v, %d in use", err, q.inUse())
	}
}
