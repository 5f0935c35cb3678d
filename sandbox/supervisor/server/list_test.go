package server

import (
	"context"
	"errors"
	"testing"
)

// A container whose caller has not confirmed it is listed when it is decided
// whether it stays: one that is being undone never is.
func TestListWaitsForTheCommit(t *testing.T) {
	for name, tc := range map[string]struct {
		decide func(*container)
		listed int
	}{
		"confirmed": {func(c *container) { c.setPending(false) }, 1},
		"undone":    {func(c *container) { c.state = gone }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := &Server{containers: map[string]*container{}}
			c := &container{srv: s, id: "c", op: make(chan struct{}, 1), state: running, pending: true}
			s.containers[c.id] = c
			c.op <- struct{}{} // as run holds it
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if got, err := s.list(ctx); !errors.Is(err, context.Canceled) {
				t.Fatalf("while it is pending: %v, %v", got, err)
			}
			tc.decide(c)
			c.unlock()
			if got, err := s.list(t.Context()); err != nil || len(got.Containers) != tc.listed {
				t.Errorf("listed %v, %v; want %d", got.Containers, err, tc.listed)
			}
		})
	}
}

// One that is only being started has told nobody of itself and is passed over.
func TestListDoesNotWaitForAStart(t *testing.T) {
	s := &Server{containers: map[string]*container{}}
	c := &container{srv: s, id: "c", op: make(chan struct{}, 1), state: starting, pending: true}
	s.containers[c.id] = c
	c.op <- struct{}{}
	if got, err := s.list(t.Context()); err != nil || len(got.Containers) != 0 {
		t.Errorf("listed %v, %v", got.Containers, err)
	}
}
