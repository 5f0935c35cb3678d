package imageservice

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
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

// TestPullsTakeTurns: while an image of ten layers waits for its second layer,
// one of a single layer comes, and gets the next slot.
func TestPullsTakeTurns(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	var layers []v1.Layer
	for i := range 10 {
		layers = append(layers, gzipLayer(t, file(fmt.Sprint("f", i), "x")))
	}
	only := gzipLayer(t, file("small", "x"))
	large, small := reg.push(t, "large", "latest", imageOf(t, layers...)), reg.push(t, "small", "latest", imageOf(t, only))
	isLayer := make(map[string]bool)
	for _, l := range append(layers, only) {
		d, _ := l.Digest()
		isLayer[d.String()] = true
	}
	cfg := testConfig(t)
	cfg.MaxDownloads = 1
	s := open(t, cfg)
	var mu sync.Mutex
	var order []string
	reg.intercept(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if _, d, ok := strings.Cut(r.URL.Path, "/blobs/"); ok && isLayer[d] {
			mu.Lock()
			order = append(order, d)
			first := len(order) == 1
			mu.Unlock()
			for i := 0; first && i < 60000 && !waiting(s, 9, 1); i++ {
				time.Sleep(time.Millisecond)
			}
		}
		next.ServeHTTP(w, r)
	})
	var wg sync.WaitGroup
	for _, ref := range []string{large, small} {
		wg.Go(func() {
			if _, err := s.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
				t.Error(err)
			}
		})
		if ref == large {
			eventually(t, func() bool { return waiting(s, 9) })
		}
	}
	wg.Wait()
	d, _ := only.Digest()
	if at := slices.Index(order, d.String()); len(order) != 11 || at > 2 {
		t.Errorf("of %d layers the single one came as number %d", len(order), at)
	}
}

// waiting says how many layers of each pull wait for a slot.
func waiting(s *Service, want ...int) bool {
	s.slots.mu.Lock()
	defer s.slots.mu.Unlock()
	var got []int
	for _, l := range s.slots.lines {
		got = append(got, len(l.waiting))
	}
	return slices.Equal(got, want)
}
