package imageservice

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"
)

// Loads and pulls of one image at once all end well, with one image.
func TestLoadsAndPullsAtOnce(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	img := variedImage(t)
	ref := reg.push(t, "varied", "1", img)
	archive := dockerArchive(t, map[string]v1.Image{"r.example/varied:1": img})
	s := open(t, testConfig(t))
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			if i%2 == 0 {
				pull(t, s, ref)
				return
			}
			if err := s.Load(t.Context(), bytes.NewReader(archive), func(string, []string) {}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if a, b := status(t, s, ref), status(t, s, "r.example/varied:1"); a == nil || b == nil || a.Id != b.Id {
		t.Errorf("%v, %v", a, b)
	}
}

// A load that had joined a pull does not fail with it.
func TestLoadOutlivesPull(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	img := imageOf(t, gzipLayer(t, file("f", strings.Repeat("x", 1<<16))))
	ref := reg.push(t, "x", "1", img)
	asked, broken := make(chan struct{}), make(chan struct{})
	var once sync.Once
	reg.intercept(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.URL.Path, "/blobs/") {
			once.Do(func() { close(asked) })
			<-broken
			http.Error(w, "gone", http.StatusNotFound)
			return
		}
		next.ServeHTTP(w, r)
	})
	s := open(t, testConfig(t))
	var all sync.WaitGroup
	all.Go(func() { _ = pullError(t, s, ref) })
	<-asked
	all.Go(func() {
		if err := s.Load(t.Context(), bytes.NewReader(dockerArchive(t, map[string]v1.Image{"r.example/x:1": img})), func(string, []string) {}); err != nil {
			t.Error(err)
		}
	})
	time.Sleep(50 * time.Millisecond) // so that the load most likely has joined
	close(broken)
	all.Wait()
	if status(t, s, "r.example/x:1") == nil {
		t.Error("not loaded")
	}
}

// A pull that waits for what a load was to bring does not fail with it, whether
// it has joined the whole image or one layer, and whether the load is given up
// or its archive is wrong.
func TestPullOutlivesLoad(t *testing.T) {
	needRoot(t)
	shared := plainLayer(t, file("f", "needle"))
	img := imageOf(t, shared, gzipLayer(t, file("g", "y")))
	good := dockerArchive(t, map[string]v1.Image{"r.example/x:1": img})
	wrong := bytes.ReplaceAll(good, []byte("needle"), []byte("NEEDLE"))
	for name, c := range map[string]struct {
		pulled  v1.Image
		archive []byte
	}{
		"image, given up": {img, good}, "layer, given up": {imageOf(t, shared), good},
		"image, wrong": {img, wrong}, "layer, wrong": {imageOf(t, shared), wrong},
	} {
		t.Run(name, func(t *testing.T) {
			found, src := inMemory(t, c.pulled)
			cfg := testConfig(t)
			cfg.MaxDownloads = 1
			synctest.Test(t, func(t *testing.T) {
				s, err := Open(klog.NewContext(context.Background(), ktesting.NewLogger(t, ktesting.NewConfig())), cfg)
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				src.all.Add(len(found.manifest.Layers))
				if err := s.slots.acquire(t.Context(), "test"); err != nil {
					t.Fatal(err)
				}
				var all sync.WaitGroup
				ctx, giveUp := context.WithCancel(t.Context())
				defer giveUp()
				all.Go(func() {
					err := s.Load(ctx, bytes.NewReader(c.archive), func(string, []string) {})
					if givenUp := ctx.Err() != nil; givenUp != errors.Is(err, context.Canceled) || givenUp == errdefs.IsDataLoss(err) {
						t.Errorf("load: %v", err)
					}
				})
				synctest.Wait() // it waits for the slot
				all.Go(func() {
					if _, err := s.fetchImage(t.Context(), src, found, []string{"pulled"}); err != nil {
						t.Errorf("pull: %v", err)
					}
				})
				synctest.Wait() // and this for the load
				if &c.archive[0] == &good[0] {
					giveUp()
				}
				synctest.Wait()
				s.slots.release()
				all.Wait()
				if s.images[found.id()] == nil {
					t.Error("the image is not there")
				}
			})
		})
	}
}
