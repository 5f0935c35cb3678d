package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// blobServer serves blobBody as the function says; n counts the requests.
func blobServer(t *testing.T, serve func(w http.ResponseWriter, r *http.Request, n int)) *server {
	t.Helper()
	var n atomic.Int32
	return newServer(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			next.ServeHTTP(w, r)
			return
		}
		serve(w, r, int(n.Add(1)))
	}).fill(t)
}

// requested reads a Range header; the whole body without one.
func requested(r *http.Request, size int) (from, to int) {
	to = size
	if n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to); n == 2 {
		to++
	}
	return from, to
}

// serveRange answers as a server with ranges does, but breaks off after most
// bytes.
func serveRange(w http.ResponseWriter, r *http.Request, body []byte, most int) {
	from, to := requested(r, len(body))
	w.Header().Set("Content-Length", fmt.Sprint(to-from))
	if r.Header.Get("Range") != "" {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, len(body)))
		w.WriteHeader(http.StatusPartialContent)
	}
	_, _ = w.Write(body[from:min(to, from+most)])
}

const all = 1 << 30

func readBlob(t *testing.T, r *Repository) ([]byte, error) {
	t.Helper()
	b := r.Open(bounded(t), blobDesc)
	defer b.Close()
	return io.ReadAll(b)
}

func wantBlob(t *testing.T, r *Repository) {
	t.Helper()
	got, err := readBlob(t, r)
	if err != nil || !bytes.Equal(got, blobBody) {
		t.Errorf("%d bytes, right: %v, %v", len(got), bytes.Equal(got, blobBody), err)
	}
}

func (s *server) ranges() []string { return s.header("Range") }

// The transfer breaks off at one host and goes on at the next where it
// stopped.
func TestResumeAtTheNextHost(t *testing.T) {
	origin := blobServer(t, func(w http.ResponseWriter, r *http.Request, _ int) { serveRange(w, r, blobBody, all) })
	mirror := blobServer(t, func(w http.ResponseWriter, r *http.Request, n int) {
		if n > 1 {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		serveRange(w, r, blobBody, 100_000)
	})
	dir := hostsDir(t, "registry.example.com", fmt.Sprintf("server = %q\n[host.%q]\n", origin.URL, mirror.URL))
	wantBlob(t, repository(t, Client{HostsDirs: []string{dir}}, "registry.example.com", nil))
	if got := origin.ranges(); len(got) != 1 || got[0] != "bytes=100000-299999" {
		t.Errorf("the registry was asked for %v", got)
	}
}

// A manifest that does not come whole is asked for again.
func TestManifestBreaksOff(t *testing.T) {
	for name, sized := range map[string]bool{"dropped": true, "truncated": false} {
		t.Run(name, func(t *testing.T) {
			var n atomic.Int32
			s := newServer(t, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
				w.Header().Set("Docker-Content-Digest", digest.FromBytes(manifestBody).String())
				if n.Add(1) > 3 {
					_, _ = w.Write(manifestBody)
					return
				}
				if sized {
					w.Header().Set("Content-Length", fmt.Sprint(len(manifestBody)))
				}
				_, _ = w.Write(manifestBody[:20])
			})
			_, body, err := repository(t, Client{}, s.host(), nil).Manifest(t.Context(), "v1", nil, 1<<20)
			if err != nil || !bytes.Equal(body, manifestBody) {
				t.Errorf("%q, %v", body, err)
			}
		})
	}
}

// A mirror that cannot be used is asked once and not again in the same pull.
func TestHostThatIsDown(t *testing.T) {
	origin := newServer(t, nil).fill(t)
	var asked atomic.Int32
	mirror := newServer(t, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		asked.Add(1)
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	dir := hostsDir(t, "registry.example.com", fmt.Sprintf("server = %q\n[host.%q]\n", origin.URL, mirror.URL))
	if err := fetchAll(t, repository(t, Client{HostsDirs: []string{dir}}, "registry.example.com", nil)); err != nil {
		t.Fatal(err)
	}
	if n := asked.Load(); n != attempts {
		t.Errorf("asked %d times", n)
	}
}

// Every way in which a mirror fails leads to the registry.
func TestMirrorFails(t *testing.T) {
	origin := newServer(t, nil).fill(t)
	status := func(code int) string {
		return newServer(t, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { w.WriteHeader(code) }).URL
	}
	plain := newServer(t, nil).fill(t)
	mute := newServer(t, func(w http.ResponseWriter, r *http.Request, _ http.Handler) { <-r.Context().Done() })
	lies := newServer(t, func(w http.ResponseWriter, r *http.Request, _ http.Handler) { fmt.Fprint(w, "{}") })
	later := newServer(t, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("Retry-After", "3600")
		w.WriteHeader(http.StatusTooManyRequests)
	})
	for name, mirror := range map[string]string{
		"401": status(401), "403": status(403), "404": status(404), "429": status(429), "500": status(500), "418": status(418),
		"unreachable": "http://127.0.0.1:1", "no such host": "http://mirror.invalid", "TLS": strings.Replace(plain.URL, "http", "https", 1),
		"mute": mute.URL, "lies": lies.URL, "asks for an hour": later.URL,
	} {
		t.Run(name, func(t *testing.T) {
			dir := hostsDir(t, "registry.example.com", fmt.Sprintf("server = %q\n[host.%q]\n", origin.URL, mirror))
			c := Client{HostsDirs: []string{dir}}
			if name == "mute" {
				c.ProgressTimeout = 500 * time.Millisecond
			}
			r := repository(t, c, "registry.example.com", nil)
			_, body, err := r.Manifest(t.Context(), digest.FromBytes(manifestBody).String(), nil, 1<<20)
			if err != nil || !bytes.Equal(body, manifestBody) {
				t.Errorf("manifest: %q, %v", body, err)
			}
			if got, err := r.Blob(t.Context(), blobDesc); err != nil || !bytes.Equal(got, blobBody) {
				t.Errorf("blob: %v", err)
			}
		})
	}
}

// An ETag that changes is no reason to fail while the content is the same.
func TestChangingETag(t *testing.T) {
	s := blobServer(t, func(w http.ResponseWriter, r *http.Request, n int) {
		w.Header().Set("ETag", fmt.Sprintf("%q", fmt.Sprint(n)))
		serveRange(w, r, blobBody, 100_000)
	})
	wantBlob(t, repository(t, Client{}, s.host(), nil))
}

// The content that changes in the middle of a transfer is found by the digest.
func TestChangingContent(t *testing.T) {
	other := bytes.Repeat([]byte("x"), len(blobBody))
	s := blobServer(t, func(w http.ResponseWriter, r *http.Request, n int) {
		if n == 1 {
			serveRange(w, r, blobBody, 100_000)
			return
		}
		serveRange(w, r, other, all)
	})
	if _, err := repository(t, Client{}, s.host(), nil).Blob(t.Context(), blobDesc); !errdefs.IsDataLoss(err) {
		t.Errorf("got %v", err)
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 21, 9, 0, 0, 0, time.UTC)
	for s, want := range map[string]time.Duration{
		"": -1, "x": -1, "-1": -1, "1.5": -1, "0": 0, " 7 ": 7 * time.Second,
		"1000000000":                    1e9 * time.Second,
		"99999999999999999999999999":    1 << 30 * time.Second,
		"Sat, 21 Nov 2026 09:00:30 GMT": 30 * time.Second,
		"Sat, 21 Nov 2026 08:00:00 GMT": 0,
	} {
		if got := retryAfter(s, now); got != want {
			t.Errorf("%q: %s, want %s", s, got, want)
		}
	}
}

// Retry-After is waited for: the time that is left for waiting shows it.
func TestRetryAfterIsHonoured(t *testing.T) {
	r := &retry{left: 3, wait: time.Millisecond, total: 10 * time.Second}
	err := r.next(t.Context(), &statusError{status: 429, after: 5 * time.Millisecond})
	if err != nil || 10*time.Second-r.total < 5*time.Millisecond {
		t.Errorf("%v, left %s", err, r.total)
	}
	if err := r.next(t.Context(), &statusError{status: 503, after: 11 * time.Second}); err == nil || !strings.Contains(err.Error(), "asks to wait for 11s, longer than") {
		t.Errorf("longer than there is: %v", err)
	}
	if err := r.next(t.Context(), &statusError{status: 404}); !errdefs.IsNotFound(err) {
		t.Errorf("404: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r.left, r.wait = 1, time.Hour
	if err := r.next(ctx, &statusError{status: 429, after: -1}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// The reader may be as slow as it likes: only waiting for the network counts.
func TestSlowReader(t *testing.T) {
	s := blobServer(t, func(w http.ResponseWriter, r *http.Request, _ int) { serveRange(w, r, blobBody, all) })
	b := repository(t, Client{ProgressTimeout: 100 * time.Millisecond}, s.host(), nil).Open(t.Context(), blobDesc)
	defer b.Close()
	buf := make([]byte, 100_000)
	for range 3 {
		if _, err := io.ReadFull(b, buf); err != nil {
			t.Fatal(err)
		}
		time.Sleep(150 * time.Millisecond)
	}
}

// A slow transfer that makes progress goes on.
func TestSlowButSteady(t *testing.T) {
	s := blobServer(t, func(w http.ResponseWriter, r *http.Request, _ int) {
		w.Header().Set("Content-Length", fmt.Sprint(len(blobBody)))
		for rest := blobBody; len(rest) > 0; rest = rest[min(len(rest), 50_000):] {
			_, _ = w.Write(rest[:min(len(rest), 50_000)])
			w.(http.Flusher).Flush()
			time.Sleep(100 * time.Millisecond)
		}
	})
	wantBlob(t, repository(t, Client{ProgressTimeout: 400 * time.Millisecond}, s.host(), nil))
}

// A server without ranges that breaks off always is given up.
func TestRestartsAreBounded(t *testing.T) {
	var n atomic.Int32
	desc := ocispec.Descriptor{Digest: digest.FromBytes([]byte("x")), Size: 1 << 30}
	s := newServer(t, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("Content-Length", fmt.Sprint(desc.Size))
		_, _ = io.CopyN(w, neverending{}, int64(n.Add(1))*3*enough)
	})
	b := repository(t, Client{}, s.host(), nil).Open(t.Context(), desc)
	defer b.Close()
	if _, err := io.Copy(io.Discard, b); !errdefs.IsUnavailable(err) || n.Load() > maxRestarts+2 {
		t.Errorf("%d requests, %v", n.Load(), err)
	}
}

// 401 in the middle: the token has expired, a new one is fetched.
func TestTokenExpires(t *testing.T) {
	var mu sync.Mutex
	tokens, valid := 0, ""
	var s *server
	s = newServer(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case r.URL.Path == "/token":
			tokens++
			valid = fmt.Sprintf("t%d", tokens)
			fmt.Fprintf(w, `{"access_token":%q}`, valid)
		case valid == "" || r.Header.Get("Authorization") != "Bearer "+valid:
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token"`, s.URL))
			w.WriteHeader(http.StatusUnauthorized)
		case strings.Contains(r.URL.Path, "/blobs/"):
			valid = "expired"
			serveRange(w, r, blobBody, 100_000)
		default:
			next.ServeHTTP(w, r)
		}
	}).fill(t)
	if err := fetchAll(t, repository(t, Client{}, s.host(), nil)); err != nil {
		t.Fatal(err)
	}
	if tokens != 3 {
		t.Errorf("%d tokens", tokens)
	}
}

// Many requests at once fetch one token.
func TestOneTokenForAll(t *testing.T) {
	var tokens atomic.Int32
	var s *server
	s = newServer(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		switch {
		case r.URL.Path == "/token":
			tokens.Add(1)
			fmt.Fprint(w, `{"token":"tok"}`)
		case r.Header.Get("Authorization") != "Bearer tok":
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Basic realm="x", Bearer realm="%s/token",service="a \"b\""`, s.URL))
			w.WriteHeader(http.StatusUnauthorized)
		default:
			next.ServeHTTP(w, r)
		}
	}).fill(t)
	r := repository(t, Client{}, s.host(), nil)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if _, err := r.Blob(t.Context(), blobDesc); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := tokens.Load(); n != 1 {
		t.Errorf("%d tokens", n)
	}
}
