package imageservice

import (
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"
)

// TestPulls looks at a pull that stands in the middle of its second layer.
func TestPulls(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	small, large := gzipLayer(t, file("a", "a")), plainLayer(t, file("b", strings.Repeat("b", 1<<20)))
	img := imageOf(t, small, large)
	refs := []string{reg.push(t, "app", "latest", img), reg.push(t, "app", "again", img)}
	largeDigest, _ := large.Digest()
	largeSize, _ := large.Size()
	smallSize, _ := small.Size()
	stands, goOn := make(chan struct{}), make(chan struct{})
	reg.intercept(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, largeDigest.String()) {
			rec := &recorder{header: http.Header{}}
			next.ServeHTTP(rec, r)
			body := rec.body.Bytes()
			_, _ = w.Write(body[:300_000])
			w.(http.Flusher).Flush()
			close(stands)
			<-goOn
			_, _ = w.Write(body[300_000:])
			return
		}
		next.ServeHTTP(w, r)
	})
	s := open(t, testConfig(t))
	if got := s.Pulls(); len(got) != 0 {
		t.Errorf("before: %v", got)
	}
	start := time.Now()
	done := make(chan error, len(refs))
	for i, ref := range refs {
		go func() {
			_, err := s.PullImage(context.Background(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
			done <- err
		}()
		if i == 0 {
			<-stands
		}
	}
	want := Pull{Layers: 2, LayersDone: 1, Bytes: smallSize + largeSize, BytesDone: smallSize + 300_000}
	var got []Pull
	eventually(t, func() bool {
		got = s.Pulls()
		if len(got) != 2 {
			return false
		}
		for i, p := range got {
			if p.Image != refs[i] || p.Started.Before(start) {
				t.Fatalf("pull %d: %v", i, p)
			}
			p.Image, p.Started = "", time.Time{}
			if p != want {
				return false
			}
		}
		return true
	})
	close(goOn)
	for range refs {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if got := s.Pulls(); len(got) != 0 || len(s.progress.transfers)+len(s.progress.reads) != 0 {
		t.Errorf("afterwards: %v, %v, %v", got, s.progress.transfers, s.progress.reads)
	}
}

// eventually fails the test when something does not come about.
func eventually(t *testing.T, is func() bool) {
	t.Helper()
	for range 6000 {
		if is() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("did not come about")
}

func TestProgressLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := ktesting.NewLogger(t, ktesting.NewConfig(ktesting.BufferLogs(true)))
		lines := log.GetSink().(ktesting.Underlier).GetBuffer()
		ctx := klog.NewContext(t.Context(), log)
		var p progress
		this, end := p.begin(ctx, "docker.io/library/app:v1")
		p.leadsTo(this, "id")
		here, over := p.transfer("id", []ocispec.Descriptor{{Digest: "sha256:a", Size: 100}, {Digest: "sha256:b", Size: 50}})
		here(0)
		_, short := p.begin(ctx, "docker.io/library/short:v1")
		time.Sleep(progressEvery - 1)
		short()
		if n := len(lines.Data()); n != 0 {
			t.Errorf("pulls of less than %v have said %d lines", progressEvery, n)
		}
		time.Sleep(2 * progressEvery)
		over()
		end()
		time.Sleep(time.Hour)
		said := lines.Data()
		if want := []any{"image", "docker.io/library/app:v1", "layers", "1/2", "bytes", int64(100), "total", int64(150)}; len(said) != 2 ||
			!slices.Equal(said[1].ParameterKVList, want) {
			t.Errorf("%d lines: %v", len(said), said)
		}
	})
}

// TestProgressOfOneBlobReadTwice: a reader that ends takes only its own count.
func TestProgressOfOneBlobReadTwice(t *testing.T) {
	var p progress
	d := digest.FromString("x")
	first := p.count(d, http.NoBody)
	second := p.count(d, http.NoBody)
	first.Close()
	if len(p.reads) != 1 {
		t.Error("the second reader is not counted")
	}
	second.Close()
	if len(p.reads) != 0 {
		t.Error("a count is left")
	}
}

func TestWhatArrivesIsWrittenBack(t *testing.T) {
	p := progress{enough: make(chan struct{}, 1)}
	read := func(n int) bool {
		r := p.count(digest.FromString("x"), io.NopCloser(strings.NewReader(strings.Repeat("x", n))))
		if _, err := io.Copy(io.Discard, r); err != nil {
			t.Fatal(err)
		}
		select {
		case <-p.enough:
			return true
		default:
			return false
		}
	}
	if read(writeBackEvery - 1) {
		t.Error("woken too early")
	}
	if !read(1) { // of another blob
		t.Error("not woken")
	}
	if read(writeBackEvery / 2) {
		t.Error("woken again too early")
	}
}
