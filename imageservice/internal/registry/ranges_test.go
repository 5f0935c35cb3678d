package registry

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// large is a blob of 40 MiB and a bit.
var large = sync.OnceValues(func() ([]byte, ocispec.Descriptor) {
	b := make([]byte, minRanged+2*partSize+12345)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b, ocispec.Descriptor{Digest: digest.FromBytes(b), Size: int64(len(b))}
})

func largeServer(t testing.TB, serve func(w http.ResponseWriter, r *http.Request, body []byte)) *server {
	body, _ := large()
	return newServer(t, func(w http.ResponseWriter, r *http.Request, _ http.Handler) { serve(w, r, body) })
}

func readLarge(t testing.TB, r *Repository) error {
	t.Helper()
	_, desc := large()
	b := r.Open(t.Context(), desc)
	defer b.Close()
	h := sha256.New()
	n, err := io.Copy(h, b)
	if err == nil && (n != desc.Size || fmt.Sprintf("sha256:%x", h.Sum(nil)) != desc.Digest.String()) {
		return fmt.Errorf("%d bytes of %d with another digest", n, desc.Size)
	}
	return err
}

func TestRanges(t *testing.T) {
	ok := func(w http.ResponseWriter, r *http.Request, body []byte) { serveRange(w, r, body, all) }
	whole := func(w http.ResponseWriter, _ *http.Request, body []byte) {
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		_, _ = w.Write(body)
	}
	var n atomic.Int32
	for name, c := range map[string]struct {
		serve func(w http.ResponseWriter, r *http.Request, body []byte)
		asked int // at most
	}{
		"all right": {ok, 11},
		"no ranges": {whole, 1},
		"breaks off": {func(w http.ResponseWriter, r *http.Request, body []byte) {
			if n.Add(1)%3 == 0 {
				serveRange(w, r, body, partSize/2)
				return
			}
			ok(w, r, body)
		}, 40},
		"5xx": {func(w http.ResponseWriter, r *http.Request, body []byte) {
			if n.Add(1)%3 == 0 {
				w.WriteHeader(http.StatusInternalServerError)
				return
			}
			ok(w, r, body)
		}, 40},
		"ranges only at first": {func(w http.ResponseWriter, r *http.Request, body []byte) {
			if strings.HasPrefix(r.Header.Get("Range"), "bytes=0-") {
				ok(w, r, body)
				return
			}
			whole(w, r, body)
		}, 11},
	} {
		t.Run(name, func(t *testing.T) {
			s := largeServer(t, c.serve)
			if err := readLarge(t, repository(t, Client{Ranges: 4}, s.host(), nil)); err != nil {
				t.Error(err)
			}
			if s.count() > c.asked {
				t.Errorf("%d requests", s.count())
			}
		})
	}
}

// Ranges fall over to the next host, which goes on with the parts.
func TestRangesFallOver(t *testing.T) {
	origin := largeServer(t, func(w http.ResponseWriter, r *http.Request, body []byte) { serveRange(w, r, body, all) })
	var n atomic.Int32
	mirror := largeServer(t, func(w http.ResponseWriter, r *http.Request, body []byte) {
		if n.Add(1) > 3 {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		serveRange(w, r, body, all)
	})
	dir := hostsDir(t, "registry.example.com", fmt.Sprintf("server = %q\n[host.%q]\n", origin.URL, mirror.URL))
	if err := readLarge(t, repository(t, Client{HostsDirs: []string{dir}, Ranges: 4}, "registry.example.com", nil)); err != nil {
		t.Fatal(err)
	}
	if got := origin.count(); got != 11-3 {
		t.Errorf("the registry was asked for %d parts", got)
	}
}

func TestRangesFail(t *testing.T) {
	_, desc := large()
	for name, c := range map[string]struct {
		serve func(w http.ResponseWriter, r *http.Request, body []byte)
		is    func(error) bool
		still time.Duration // until a transfer is given up, where that is to happen
	}{
		"other size": {func(w http.ResponseWriter, r *http.Request, body []byte) { serveRange(w, r, body[1:], all) }, errdefs.IsDataLoss, 0},
		"gone in the middle": {func(w http.ResponseWriter, r *http.Request, body []byte) {
			if from, _ := requested(r, len(body)); from >= 5*partSize {
				w.WriteHeader(http.StatusForbidden)
				return
			}
			serveRange(w, r, body, all)
		}, errdefs.IsPermissionDenied, 0},
		"mute": {func(_ http.ResponseWriter, r *http.Request, _ []byte) { <-r.Context().Done() }, errdefs.IsUnavailable, 300 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			s := largeServer(t, c.serve)
			if err := readLarge(t, repository(t, Client{Ranges: 4, ProgressTimeout: c.still}, s.host(), nil)); !c.is(err) {
				t.Errorf("got %v", err)
			}
		})
	}
	s := largeServer(t, func(w http.ResponseWriter, r *http.Request, body []byte) { serveRange(w, r, body, all) })
	b := repository(t, Client{Ranges: 4}, s.host(), nil).Open(t.Context(), desc)
	if _, err := io.ReadFull(b, make([]byte, partSize+1)); err != nil {
		t.Fatal(err)
	}
	b.Close() // waits for the workers; the race detector and t.Cleanup see those that stay
	if _, err := b.Read(make([]byte, partSize)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("after Close: %v", err)
	}
	if n := s.count(); n > 7 {
		t.Errorf("%d parts were fetched ahead of a reader that took one", n)
	}
}

// BenchmarkRanges compares one stream with four ranges over a line on which a
// connection is late and slow, and over loopback. Set RANGES_LINE=1 for the
// former.
func BenchmarkRanges(b *testing.B) {
	for _, line := range []bool{false, true} {
		if line && os.Getenv("RANGES_LINE") == "" {
			continue
		}
		s := largeServer(b, func(w http.ResponseWriter, r *http.Request, body []byte) {
			if !line {
				serveRange(w, r, body, all)
				return
			}
			time.Sleep(100 * time.Millisecond)
			serveRange(&slowWriter{ResponseWriter: w, rate: 8 << 20}, r, body, all)
		})
		for _, ranges := range []int{1, 4} {
			b.Run(fmt.Sprintf("line=%v/ranges=%d", line, ranges), func(b *testing.B) {
				_, desc := large()
				b.SetBytes(desc.Size)
				for b.Loop() {
					r := repository(b, Client{Ranges: ranges}, s.host(), nil)
					if err := readLarge(b, r); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// slowWriter lets rate bytes a second through.
type slowWriter struct {
	http.ResponseWriter
	rate int
}

func (w *slowWriter) Write(p []byte) (n int, err error) {
	const tick = 20 * time.Millisecond
	for start, r := time.Now(), bytes.NewReader(p); r.Len() > 0; {
		m, err := io.CopyN(w.ResponseWriter, r, int64(w.rate)/int64(time.Second/tick))
		n += int(m)
		if err != nil && err != io.EOF {
			return n, err
		}
		time.Sleep(time.Until(start.Add(time.Duration(n) * time.Second / time.Duration(w.rate))))
	}
	return n, nil
}
