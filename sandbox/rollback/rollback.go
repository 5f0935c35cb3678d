package rollback

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Timeout bounds the whole of one roll-back.
const Timeout = 30 * time.Second

// Stack is the undo steps of one operation. The zero value is ready. It
// belongs to one goroutine.
type Stack struct {
	steps []step
}

type step struct {
	name string
	undo func(context.Context) error
}

// Add records how to undo a step that has been made; name says what is undone
// and stands in the error of an undo that failed.
func (s *Stack) Add(name string, undo func(context.Context) error) {
	s.steps = append(s.steps, step{name, undo})
}

// Release forgets all steps: the operation has succeeded.
func (s *Stack) Release() { s.steps = nil }

// Undo runs every step, newest first, also when some of them fail, and
// returns their errors joined. Values of ctx are kept, its deadline and
// cancellation are not; [Timeout] bounds the whole instead. A second call
// does nothing.
func (s *Stack) Undo(ctx context.Context) error {
	if len(s.steps) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), Timeout)
	defer cancel()
	var errs []error
	for i := len(s.steps) - 1; i >= 0; i-- {
		if err := s.steps[i].undo(ctx); err != nil {
			errs = append(errs, fmt.Errorf("undoing %s: %w", s.steps[i].name, err))
		}
	}
	s.steps = nil
	return errors.Join(errs...)
}
