package imageservice

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
)

// TestSlotsTakeTurns: of three pulls that wait, each gets the next slot in its
// turn, however many it waits for.
func TestSlotsTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := slots{free: 1}
		if err := s.acquire(t.Context(), "first"); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, want := range []struct {
			pull string
			n    int
		}{{"large", 4}, {"small", 1}, {"middle", 2}} {
			for range want.n {
				go func() {
					if err := s.acquire(t.Context(), want.pull); err != nil {
						t.Error(err)
					}
					got = append(got, want.pull)
				}()
				synctest.Wait()
			}
		}
		for range 8 {
			s.release()
			synctest.Wait()
		}
		if want := []string{"large", "small", "middle", "large", "middle", "large", "large"}; !slices.Equal(got, want) {
			t.Errorf("got %v", got)
		}
		if s.free != 1 || len(s.lines) != 0 {
			t.Errorf("afterwards %d free, %d lines", s.free, len(s.lines))
		}
	})
}

func TestSlotsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := slots{free: 2}
		gone := errors.New("gone")
		for range 2 {
			if err := s.acquire(t.Context(), "a"); err != nil {
				t.Fatal(err)
			}
		}
		errs := make(chan error, 20)
		var cancels []context.CancelCauseFunc
		for i := range 20 {
			ctx, cancel := context.WithCancelCause(t.Context())
			cancels = append(cancels, cancel)
			go func() { errs <- s.acquire(ctx, fmt.Sprint(i%3)) }()
		}
		synctest.Wait()
		for i, cancel := range cancels {
			if i == 10 { // a slot is given while others give up
				go s.release()
				go s.release()
			}
			go cancel(gone)
		}
		held := 0
		for range cancels {
			switch err := <-errs; {
			case err == nil:
				held++
			case !errors.Is(err, gone):
				t.Errorf("got %v", err)
			}
		}
		for range held {
			s.release()
		}
		if s.free != 2 || len(s.lines) != 0 {
			t.Errorf("afterwards %d free, %d lines", s.free, len(s.lines))
		}
	})
}
