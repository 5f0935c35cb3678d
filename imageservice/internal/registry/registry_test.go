package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// server is a real registry with something in front of it.
type server struct {
	*httptest.Server
	mu   sync.Mutex
	seen []*http.Request
}

func newServer(t testing.TB, front func(w http.ResponseWriter, r *http.Request, next http.Handler)) *server {
	t.Helper()
	s := &server{}
	back := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost || r.Method == http.MethodPut {
			back.ServeHTTP(w, r)
			return
		}
		s.mu.Lock()
		s.seen = append(s.seen, r.Clone(context.Background()))
		s.mu.Unlock()
		if front == nil {
			back.ServeHTTP(w, r)
			return
		}
		front(w, r, back)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Start()
	t.Cleanup(s.Close)
	return s
}

func (s *server) host() string { return strings.TrimPrefix(s.URL, "http://") }

// count is how many requests have come.
func (s *server) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.seen)
}

// header collects the values of a header over all requests.
func (s *server) header(name string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []string
	for _, r := range s.seen {
		all = append(all, r.Header.Values(name)...)
	}
	return all
}

var blobBody = func() []byte {
	b := make([]byte, 300_000)
	_, _ = rand.NewChaCha8([32]byte{}).Read(b)
	return b
}()

var blobDesc = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(blobBody), Size: int64(len(blobBody))}

// fill puts one blob and one manifest of tag v1 into the repository r.
func (s *server) fill(t *testing.T) *server {
	t.Helper()
	s.send(t, http.MethodPost, "/v2/r/blobs/uploads/?digest="+blobDesc.Digest.String(), blobBody)
	s.send(t, http.MethodPut, "/v2/r/manifests/v1", manifestBody)
	return s
}

var manifestBody = []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"}`)

func (s *server) send(t *testing.T, method, path string, body []byte) {
	t.Helper()
	req, _ := http.NewRequest(method, s.URL+path, bytes.NewReader(body))
	req.Header.Set("Content-Type", ocispec.MediaTypeImageManifest)
	resp, err := http.DefaultClient.Do(req)
	if err != nil || resp.StatusCode >= 300 {
		t.Fatalf("%s %s: %v, %v", method, path, resp, err)
	}
	resp.Body.Close()
}

func repository(t testing.TB, c Client, host string, auth *runtimeapi.AuthConfig) *Repository {
	t.Helper()
	name, err := reference.ParseNormalizedNamed(host + "/r")
	if err != nil {
		t.Fatal(err)
	}
	if c.ProgressTimeout == 0 {
		c.ProgressTimeout = time.Minute
	}
	if c.backoff == 0 {
		c.backoff = time.Millisecond
	}
	r, err := c.Repository(name, auth)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func fetchAll(t *testing.T, r *Repository) error {
	t.Helper()
	desc, body, err := r.Manifest(t.Context(), "v1", nil, 1<<20)
	if err != nil {
		return err
	}
	if !bytes.Equal(body, manifestBody) || desc.Digest != digest.FromBytes(body) {
		t.Errorf("manifest %v %s", desc, body)
	}
	got, err := r.Blob(t.Context(), blobDesc)
	if err == nil && !bytes.Equal(got, blobBody) {
		t.Error("another blob")
	}
	return err
}

// hostsDir writes the hosts.toml of a registry.
func hostsDir(t *testing.T, host, text string) string {
	t.Helper()
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, host), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, host, "hosts.toml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return root
}

func TestMirrors(t *testing.T) {
	origin, mirror := newServer(t, nil).fill(t), newServer(t, nil).fill(t)
	empty, broken := newServer(t, nil), newServer(t, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.WriteHeader(http.StatusInternalServerError)
	})
	config := func(mirrors ...*server) string {
		text := fmt.Sprintf("server = %q\n", origin.URL)
		for _, m := range mirrors {
			text += fmt.Sprintf("[host.%q]\n", m.URL)
		}
		return text
	}
	used := func(s *server) bool { defer func() { s.seen = nil }(); return s.count() > 0 }
	for name, c := range map[string]struct {
		dirs             []string
		mirrored, direct bool
	}{
		"mirror":              {[]string{hostsDir(t, "registry.example.com", config(mirror))}, true, false},
		"mirror lacks it":     {[]string{hostsDir(t, "registry.example.com", config(empty))}, false, true},
		"mirror is broken":    {[]string{hostsDir(t, "registry.example.com", config(broken))}, false, true},
		"second mirror":       {[]string{hostsDir(t, "registry.example.com", config(empty, mirror))}, true, false},
		"_default":            {[]string{hostsDir(t, "_default", config(mirror))}, true, false},
		"first directory":     {[]string{t.TempDir(), hostsDir(t, "registry.example.com", config(mirror)), hostsDir(t, "registry.example.com", config())}, true, false},
		"only for resolving":  {[]string{hostsDir(t, "registry.example.com", config()+fmt.Sprintf("[host.%q]\ncapabilities=[\"resolve\",\"pull\"]\n", mirror.URL))}, true, false},
		"mirror not resolves": {[]string{hostsDir(t, "registry.example.com", config()+fmt.Sprintf("[host.%q]\ncapabilities=[\"pull\"]\n", mirror.URL))}, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			auth := &runtimeapi.AuthConfig{Username: "user", Password: "secret"}
			if err := fetchAll(t, repository(t, Client{HostsDirs: c.dirs}, "registry.example.com", auth)); err != nil {
				t.Fatal(err)
			}
			if m, d := used(mirror), used(origin); m != c.mirrored || d != c.direct {
				t.Errorf("mirror used: %v, registry used: %v", m, d)
			}
		})
	}
	if q := func() string {
		_ = fetchAll(t, repository(t, Client{HostsDirs: []string{hostsDir(t, "registry.example.com", config(mirror))}}, "registry.example.com", nil))
		return mirror.seen[0].URL.Query().Get("ns")
	}(); q != "registry.example.com" {
		t.Errorf("ns=%q", q)
	}
	name, _ := reference.ParseNormalizedNamed("registry.example.com/r")
	bad := Client{HostsDirs: []string{hostsDir(t, "registry.example.com", "server = ")}}
	if _, err := bad.Repository(name, nil); err == nil || !strings.Contains(err.Error(), "hosts.toml") {
		t.Errorf("unreadable hosts.toml: %v", err)
	}
}

// TestResume: the transfer breaks off again and again.
func TestResume(t *testing.T) {
	for name, ranges := range map[string]bool{"with ranges": true, "without ranges": false} {
		t.Run(name, func(t *testing.T) {
			tries := 0
			s := newServer(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if !strings.Contains(r.URL.Path, "/blobs/") {
					next.ServeHTTP(w, r)
					return
				}
				tries++
				off := 0
				if ranges {
					_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &off)
				}
				rest := blobBody[off:]
				w.Header().Set("Content-Length", fmt.Sprint(len(rest)))
				if off > 0 {
					w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, len(blobBody)-1, len(blobBody)))
					w.WriteHeader(http.StatusPartialContent)
				}
				n := 50_000 // more at each try for those without ranges
				if !ranges {
					n *= tries
				}
				_, _ = w.Write(rest[:min(n, len(rest))])
			}).fill(t)
			if err := fetchAll(t, repository(t, Client{}, s.host(), nil)); err != nil {
				t.Fatal(err)
			}
			if tries < 5 {
				t.Errorf("%d tries", tries)
			}
		})
	}
}

func TestResumeRefuses(t *testing.T) {
	for name, answer := range map[string]string{
		"other offset": "bytes 7-299999/300000", "other size": "bytes 50000-299999/300001", "nonsense": "x", "none": "",
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if r.Header.Get("Range") != "" {
					w.Header().Set("Content-Range", answer)
					w.WriteHeader(http.StatusPartialContent)
					return
				}
				w.Header().Set("Content-Length", "300000")
				_, _ = w.Write(blobBody[:50_000])
			})
			r := repository(t, Client{}, s.host(), nil)
			if _, err := r.Blob(t.Context(), blobDesc); !errdefs.IsDataLoss(err) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestRetries(t *testing.T) {
	fails := 2
	s := newServer(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if fails--; fails >= 0 {
			w.WriteHeader([]int{http.StatusServiceUnavailable, http.StatusTooManyRequests}[fails])
			return
		}
		next.ServeHTTP(w, r)
	}).fill(t)
	if err := fetchAll(t, repository(t, Client{}, s.host(), nil)); err != nil {
		t.Error(err)
	}
}

func TestHostileAnswers(t *testing.T) {
	for name, front := range map[string]func(w http.ResponseWriter, r *http.Request){
		"redirects without end": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) },
		"compressed transfer":   func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Encoding", "gzip") },
		"401 without end": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
		},
		"endless error": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusTeapot)
			_, _ = io.CopyN(w, neverending{}, 64<<20)
		},
		"endless manifest": func(w http.ResponseWriter, _ *http.Request) { _, _ = io.CopyN(w, neverending{}, 64<<20) },
		"control bytes": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, `{"errors":[{"code":"DENIED","message":"a\n\u001b[31mb"}]}`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, func(w http.ResponseWriter, r *http.Request, _ http.Handler) { front(w, r) })
			err := fetchAll(t, repository(t, Client{}, s.host(), &runtimeapi.AuthConfig{Username: "u", Password: "p"}))
			if err == nil || len(err.Error()) > 1000 || strings.ContainsAny(err.Error(), "\n\x1b") {
				t.Errorf("got %q", err)
			}
		})
	}
}

type neverending struct{}

func (neverending) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

func TestCancelWhileReading(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := newServer(t, func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		w.Header().Set("Content-Length", "300000")
		_, _ = w.Write(blobBody[:10])
		w.(http.Flusher).Flush()
		cancel()
		<-r.Context().Done()
	})
	b := repository(t, Client{}, s.host(), nil).Open(ctx, blobDesc)
	defer b.Close()
	if _, err := io.ReadAll(b); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
