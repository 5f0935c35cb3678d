package imageservice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestCancelledPullLeavesNothing(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	ref := reg.push(t, "app", "latest", imageOf(t, gzipLayer(t, file("a", "a")), gzipLayer(t, file("b", "b"))))
	blocked := make(chan struct{}, 8)
	reg.intercept(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.URL.Path, "/blobs/") && reg.count("GET", "/blobs/") > 1 {
			w.Header().Set("Content-Length", "100")
			_, _ = w.Write([]byte("x"))
			w.(http.Flusher).Flush()
			blocked <- struct{}{}
			<-r.Context().Done()
			return
		}
		next.ServeHTTP(w, r)
	})
	s := open(t, testConfig(t))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := s.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
		done <- err
	}()
	<-blocked
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if status(t, s, ref) != nil {
		t.Error("the image is visible")
	}
	if left := leftovers(t, s); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	reg.intercept(nil)
	pull(t, s, ref)
}

func TestSpoiltAnswers(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	l := gzipLayer(t, file("f", strings.Repeat("content", 10000)))
	ref := reg.push(t, "app", "latest", imageOf(t, l))
	layerDigest, _ := l.Digest()
	only := func(path string, spoil func(w http.ResponseWriter, body []byte)) func(http.ResponseWriter, *http.Request, http.Handler) {
		return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if !strings.Contains(r.URL.Path, path) || r.Method != http.MethodGet {
				next.ServeHTTP(w, r)
				return
			}
			rec := &recorder{header: http.Header{}}
			next.ServeHTTP(rec, r)
			for k, v := range rec.header {
				if k != "Content-Length" {
					w.Header()[k] = v
				}
			}
			spoil(w, rec.body.Bytes())
		}
	}
	blob := "/blobs/" + layerDigest.String()
	for name, wrap := range map[string]func(http.ResponseWriter, *http.Request, http.Handler){
		"other blob":       only(blob, func(w http.ResponseWriter, b []byte) { b[len(b)-1] ^= 1; _, _ = w.Write(b) }),
		"cut blob":         only(blob, func(w http.ResponseWriter, b []byte) { _, _ = w.Write(b[:len(b)/2]) }),
		"longer blob":      only(blob, func(w http.ResponseWriter, b []byte) { _, _ = w.Write(append(b, 0)) }),
		"other config":     only("/blobs/", func(w http.ResponseWriter, b []byte) { _, _ = w.Write(append([]byte(" "), b...)) }),
		"other manifest":   only("/manifests/", func(w http.ResponseWriter, b []byte) { _, _ = w.Write(append([]byte(" "), b...)) }),
		"endless manifest": only("/manifests/", func(w http.ResponseWriter, b []byte) { _, _ = io.Copy(w, io.LimitReader(zeros{}, 64<<20)) }),
		"schema 1":         only("/manifests/", func(w http.ResponseWriter, b []byte) { schema1(w) }),
	} {
		t.Run(name, func(t *testing.T) {
			reg.intercept(wrap)
			defer reg.intercept(nil)
			s := open(t, testConfig(t))
			err := pullError(t, s, ref)
			if status(t, s, ref) != nil || !strings.Contains(err.Error(), ref) {
				t.Errorf("got %v", err)
			}
			if name == "schema 1" && !strings.Contains(err.Error(), "schema 1") {
				t.Errorf("got %v", err)
			}
			if left := leftovers(t, s); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

func schema1(w http.ResponseWriter) {
	w.Header().Del("Docker-Content-Digest")
	w.Header().Set("Content-Type", "application/vnd.docker.distribution.manifest.v1+prettyjws")
	_, _ = io.WriteString(w, `{"schemaVersion":1,"fsLayers":[{"blobSum":"sha256:x"}]}`)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestErrorsOfTheRegistry(t *testing.T) {
	reg := newRegistry(t)
	s := open(t, testConfig(t))
	if err := pullError(t, s, reg.host()+"/none:v1"); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), reg.host()+"/none:v1") {
		t.Errorf("unknown image: %v", err)
	}
	for _, ref := range []string{"a:b:c", "docker.io/UPPER", "x@sha256:short", "-x", "http://x/y"} {
		if err := pullError(t, s, ref); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), fmt.Sprintf("%q", ref)) {
			t.Errorf("malformed reference: %v", err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close() // nobody listens there now
	if err := pullError(t, s, l.Addr().String()+"/x:v1"); !strings.HasPrefix(err.Error(), "RegistryUnavailable") || !errdefs.IsUnavailable(err) {
		t.Errorf("no registry: %v", err)
	}
	reg.intercept(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { w.WriteHeader(http.StatusBadGateway) })
	if err := pullError(t, s, reg.host()+"/x:v1"); !strings.HasPrefix(err.Error(), "RegistryUnavailable") {
		t.Errorf("502: %v", err)
	}
	reg.intercept(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { w.WriteHeader(http.StatusForbidden) })
	if err := pullError(t, s, reg.host()+"/x:v1"); !errdefs.IsPermissionDenied(err) {
		t.Errorf("403: %v", err)
	}
}

func TestProgressTimeout(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	ref := reg.push(t, "app", "latest", imageOf(t, gzipLayer(t, file("f", "x"))))
	reg.intercept(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.URL.Path, "/blobs/") {
			<-r.Context().Done()
			return
		}
		next.ServeHTTP(w, r)
	})
	cfg := testConfig(t)
	cfg.ProgressTimeout = 50 * time.Millisecond
	s := open(t, cfg)
	if err := pullError(t, s, ref); !errdefs.IsUnavailable(err) || !strings.HasPrefix(err.Error(), "RegistryUnavailable") {
		t.Errorf("got %v", err)
	}
}
