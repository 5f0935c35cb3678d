package imageservice

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"

	"github.com/gantry-cri/gantry/imageservice/internal/manifest"
)

// farFuture is when nothing is kept any more.
var farFuture = time.Now().Add(24 * time.Hour)

// tenLayers is an image whose layers partly depend on those below, and the
// digests of its blobs.
func tenLayers(t *testing.T) (v1.Image, []v1.Hash) {
	t.Helper()
	var layers []v1.Layer
	var digests []v1.Hash
	for i := range 10 {
		l := gzipLayer(t, file(fmt.Sprint("f", i), strings.Repeat("x", i*5000)))
		if i%2 == 1 { // its directory is implied
			l = gzipLayer(t, file(fmt.Sprintf("implied/f%d", i), "x"))
		}
		d, err := l.Digest()
		if err != nil {
			t.Fatal(err)
		}
		layers, digests = append(layers, l), append(digests, d)
	}
	return imageOf(t, layers...), digests
}

// TestRetryFetchesWhatIsMissing fails one layer of ten when all others are
// here.
func TestRetryFetchesWhatIsMissing(t *testing.T) {
	needRoot(t)
	for _, bad := range []int{0, 4, 5, 9} {
		t.Run(fmt.Sprint(bad), func(t *testing.T) {
			reg := newRegistry(t)
			img, digests := tenLayers(t)
			ref := reg.push(t, "app", "latest", img)
			cfg := testConfig(t)
			cfg.MaxDownloads = 10
			s := open(t, cfg)
			failOne(reg, digests[bad], func() bool { return fetchedLayers(s) == 9 })
			_ = pullError(t, s, ref)
			if names := leftovers(t, s); len(names) != 9 {
				t.Errorf("kept: %v", names)
			}
			checkFigures(t, s)
			if status(t, s, ref) != nil {
				t.Error("the image is there")
			}
			reg.intercept(nil)
			reg.reset()
			id := pull(t, s, ref)
			if n := reg.count("GET", "/blobs/"); n != 2 || reg.count("GET", digests[bad].String()) != 1 {
				t.Errorf("the retry fetched %d blobs: %v", n, reg.seen)
			}
			checkFigures(t, s)
			if names := leftoversAt(t, s, time.Now().Add(keepFor)); len(names) != 10 {
				t.Errorf("layers of the image: %v", names)
			}
			root := mount(t, s, "c1", id)
			for i := range 10 {
				name := fmt.Sprint("/f", i)
				if i%2 == 1 {
					name = "/implied" + name
				}
				if _, err := os.Stat(root + name); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// failOne answers one blob with an error once all else is as it should be.
func failOne(reg *testRegistry, bad v1.Hash, when func() bool) {
	reg.intercept(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, bad.String()) {
			for range 12000 {
				if when() {
					break
				}
				time.Sleep(5 * time.Millisecond)
			}
			w.WriteHeader(http.StatusNotFound)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// fetchedLayers counts the layers that are whole, stored or not.
func fetchedLayers(s *Service) int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.layers) + len(s.parked) + len(s.claims)
}

// TestKeptLayersGo: after their time, at a restart, and when the disk is full.
func TestKeptLayersGo(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	img, digests := tenLayers(t)
	ref := reg.push(t, "app", "latest", img)
	cfg := testConfig(t)
	cfg.MaxDownloads = 10
	s := open(t, cfg)
	fail := func() {
		t.Helper()
		failOne(reg, digests[9], func() bool { return fetchedLayers(s) == 9 })
		_ = pullError(t, s, ref)
		if names := leftoversAt(t, s, time.Now().Add(keepFor-time.Minute)); len(names) != 9 {
			t.Errorf("kept: %v", names)
		}
	}
	none := func(names []string) {
		t.Helper()
		checkFigures(t, s)
		if len(names) != 0 || s.used != (Usage{}) || s.waiting != 0 {
			t.Errorf("left: %v, %v, %d bytes of memory", names, s.used, s.waiting)
		}
	}
	fail()
	none(leftoversAt(t, s, time.Now().Add(keepFor)))
	fail()
	s.dropKept(errors.New("another"))
	if names := leftovers(t, s); len(names) != 9 {
		t.Errorf("kept: %v", names)
	}
	s.dropKept(fmt.Errorf("writing: %w", unix.ENOSPC))
	none(leftovers(t, s))
	fail()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, cfg)
	none(leftovers(t, s))
}

// memory is an image without a registry. A blob that it does not have fails
// when all others were read.
type memory struct {
	blobs map[digest.Digest][]byte
	all   sync.WaitGroup // of those that it has
}

func (m *memory) Blob(_ context.Context, d ocispec.Descriptor) ([]byte, error) {
	return m.blobs[d.Digest], nil
}

func (m *memory) Open(_ context.Context, d ocispec.Descriptor) io.ReadCloser {
	body, ok := m.blobs[d.Digest]
	if !ok {
		return io.NopCloser(failing{m})
	}
	return closing{bytes.NewReader(body), m.all.Done}
}

func (m *memory) Doubt(context.Context, io.ReadCloser, error) bool { return false }

type closing struct {
	io.Reader
	end func()
}

func (c closing) Close() error { c.end(); return nil }

type failing struct{ m *memory }

func (f failing) Read([]byte) (int, error) {
	f.m.all.Wait()
	time.Sleep(time.Second) // of the bubble: the others have settled
	return 0, errors.New("no such blob")
}

// TestKeptLayersGoByThemselves runs with the clock of a bubble.
func TestKeptLayersGoByThemselves(t *testing.T) {
	needRoot(t)
	img, digests := tenLayers(t)
	found, src := inMemory(t, img)
	delete(src.blobs, digest.Digest(digests[9].String()))
	cfg := testConfig(t)
	cfg.MaxDownloads = 10
	synctest.Test(t, func(t *testing.T) {
		src.all.Add(9)
		s, err := Open(klog.NewContext(context.Background(), ktesting.NewLogger(t, ktesting.NewConfig())), cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, err := s.fetchImage(t.Context(), src, found, []string{"app"}); err == nil {
			t.Fatal("the image is there")
		}
		synctest.Wait()
		if n := fetchedLayers(s); n != 9 {
			t.Fatalf("%d layers are kept", n)
		}
		time.Sleep(keepFor - 2*time.Second)
		synctest.Wait()
		if n := fetchedLayers(s); n != 9 {
			t.Errorf("%d layers are kept before their time is over", n)
		}
		time.Sleep(4 * time.Second)
		synctest.Wait()
		if n := fetchedLayers(s); n != 0 || s.used != (Usage{}) {
			t.Errorf("%d layers are left: %v", n, s.used)
		}
		for _, dir := range []string{layersDir, tmpDir, trashDir} {
			if entries, err := os.ReadDir(s.path(dir)); err != nil || len(entries) != 0 {
				t.Errorf("left in %s: %v, %v", dir, entries, err)
			}
		}
	})
}

func inMemory(t *testing.T, img v1.Image) (resolved, *memory) {
	t.Helper()
	body, err := img.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	doc, err := manifest.Parse("", body, manifest.Limits{Size: 1 << 20, Layers: 100})
	if err != nil {
		t.Fatal(err)
	}
	m := &memory{blobs: make(map[digest.Digest][]byte)}
	config, err := img.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	m.blobs[digest.FromBytes(config)] = config
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		rc, err := l.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(rc)
		if err != nil {
			t.Fatal(err)
		}
		m.blobs[digest.FromBytes(body)] = body
	}
	return resolved{digest: digest.FromBytes(body), body: body, manifest: doc.Manifest}, m
}

// TestImageThatCameMeanwhile: who has not found an image, and asks for it when
// it has come, gets that one.
func TestImageThatCameMeanwhile(t *testing.T) {
	needRoot(t)
	found, src := inMemory(t, imageOf(t, gzipLayer(t, file("f", "x"))))
	s := open(t, testConfig(t))
	src.all.Add(1)
	img, err := s.fetchImage(t.Context(), src, found, []string{"r.example/app:v1"})
	if err != nil {
		t.Fatal(err)
	}
	clear(src.blobs)
	again, err := s.fetchImage(t.Context(), src, found, []string{"r.example/app:v2"})
	if err != nil || again.ID != img.ID || len(again.RepoTags) != 2 {
		t.Errorf("%v, %v", again, err)
	}
}

// TestWaitingLayersAreBounded: those of one image take more memory than any of
// them may.
func TestWaitingLayersAreBounded(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	img, _ := tenLayers(t)
	ref := reg.push(t, "app", "latest", img)
	s := open(t, testConfig(t))
	s.waiting = maxWaiting // by another image
	if err := pullError(t, s, ref); !errdefs.IsResourceExhausted(err) {
		t.Errorf("got %v", err)
	}
	if len(s.parked) != 0 || s.waiting != maxWaiting {
		t.Errorf("%d layers wait with %d bytes", len(s.parked), s.waiting-maxWaiting)
	}
	s.waiting = 0
	pull(t, s, ref)
	if s.waiting != 0 {
		t.Errorf("%d bytes afterwards", s.waiting)
	}
}
