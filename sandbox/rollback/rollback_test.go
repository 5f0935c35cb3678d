package rollback_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/sandbox/rollback"
)

func TestUndoRunsAllNewestFirstOnALiveContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var order []string
	var s rollback.Stack
	add := func(name string, err error) {
		s.Add(name, func(ctx context.Context) error {
			if ctx.Err() != nil {
				t.Errorf("%s ran on the caller's dead context", name)
			}
			order = append(order, name)
			return err
		})
	}
	boom := errors.New("boom")
	add("first", nil)
	add("second", boom)
	add("third", nil)
	err := s.Undo(ctx)
	if !errors.Is(err, boom) || !strings.Contains(err.Error(), "undoing second") {
		t.Errorf("error %v does not name the failed step", err)
	}
	if !slices.Equal(order, []string{"third", "second", "first"}) {
		t.Errorf("order %v", order)
	}
	if err := s.Undo(ctx); err != nil || len(order) != 3 {
		t.Errorf("second Undo: %v, %v", err, order)
	}
}

func TestReleaseForgets(t *testing.T) {
	var s rollback.Stack
	s.Add("step", func(context.Context) error { t.Error("undone after Release"); return nil })
	s.Release()
	if err := s.Undo(t.Context()); err != nil {
		t.Error(err)
	}
}
