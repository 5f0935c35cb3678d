package flight

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/containerd/errdefs"
)

func TestOnceForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls, drops atomic.Int32
		g := Group[int]{Drop: func(int) { drops.Add(1) }}
		start := make(chan struct{})
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				v, release, err := g.Do(t.Context(), "k", func(context.Context) (int, error) {
					calls.Add(1)
					<-start
					return 7, nil
				})
				if v != 7 || err != nil {
					t.Errorf("got %d, %v", v, err)
				}
				release()
				release()
			})
		}
		synctest.Wait()
		close(start)
		wg.Wait()
		if calls.Load() != 1 || drops.Load() != 1 {
			t.Errorf("%d calls, %d drops", calls.Load(), drops.Load())
		}
	})
}

func TestOneCallersCancelLeavesTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group[int]
		start := make(chan struct{})
		work := func(ctx context.Context) (int, error) {
			select {
			case <-start:
				return 1, nil
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		first := make(chan error, 1)
		go func() {
			_, _, err := g.Do(ctx, "k", work)
			first <- err
		}()
		synctest.Wait()
		second := make(chan error, 1)
		go func() {
			_, _, err := g.Do(t.Context(), "k", work)
			second <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-first; !errors.Is(err, context.Canceled) {
			t.Errorf("first: %v", err)
		}
		close(start)
		if err := <-second; err != nil {
			t.Errorf("second: %v", err)
		}
	})
}

func TestLastCancelWaitsForTheEndAndTheNextStartsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group[int]
		undone, undo := false, make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, _, err := g.Do(ctx, "k", func(ctx context.Context) (int, error) {
				<-ctx.Done()
				<-undo
				undone = true
				return 0, ctx.Err()
			})
			if !undone {
				t.Error("Do returned before the work had ended")
			}
			done <- err
		}()
		synctest.Wait()
		cancel()
		synctest.Wait()
		next := make(chan int, 1)
		go func() {
			v, _, _ := g.Do(t.Context(), "k", func(context.Context) (int, error) { return 2, nil })
			next <- v
		}()
		synctest.Wait()
		close(undo)
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		if v := <-next; v != 2 {
			t.Errorf("next got %d", v)
		}
	})
}

func TestPanicIsAnError(t *testing.T) {
	var g Group[int]
	if _, _, err := g.Do(t.Context(), "k", func(context.Context) (int, error) { panic("boom") }); !errdefs.IsInternal(err) {
		t.Errorf("%v", err)
	}
	v, release, err := g.Do(t.Context(), "k", func(context.Context) (int, error) { return 1, nil })
	if err != nil || v != 1 {
		t.Fatalf("afterwards: %d, %v", v, err)
	}
	release()
}
