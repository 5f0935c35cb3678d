package registry

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// secureRegistry is one with a certificate for registry.example.com.
func secureRegistry(t *testing.T, ca *authority, front func(w http.ResponseWriter, r *http.Request, next http.Handler)) *httptest.Server {
	return secure(t, &tls.Config{Certificates: []tls.Certificate{ca.server("registry.example.com")}}, newServer(t, front).Config.Handler)
}

// trusting is the repository at it.
func trusting(t *testing.T, ca *authority, s *httptest.Server, auth *runtimeapi.AuthConfig) *Repository {
	root := hostsDir(t, "registry.example.com", "ca = \"ca.pem\"\n")
	ca.files(filepath.Join(root, "registry.example.com"))
	r := repository(t, Client{HostsDirs: []string{root}, ProgressTimeout: time.Minute}, "registry.example.com", auth)
	dialTo(r, s)
	return r
}

// rawServer speaks whatever it likes.
func rawServer(t *testing.T, serve func(c net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			context.AfterFunc(ctx, func() { c.Close() })
			go serve(c)
		}
	}()
	t.Cleanup(func() { cancel(); l.Close(); <-done })
	return l.Addr().String()
}

// answering reads the request first.
func answering(t *testing.T, serve func(c net.Conn)) string {
	return rawServer(t, func(c net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			serve(c)
		}
	})
}

// plainHost configures a loopback server as plain HTTP.
func plainHost(t *testing.T, addr string, timeout time.Duration) *Repository {
	dir := hostsDir(t, "_default", fmt.Sprintf("server = \"http://%s\"\n", addr))
	return repository(t, Client{HostsDirs: []string{dir}, ProgressTimeout: timeout}, "127.0.0.1:1", nil)
}

// drip sends one byte now and then.
func drip(c io.Writer, every time.Duration) {
	for {
		time.Sleep(every)
		if _, err := c.Write([]byte("x")); err != nil {
			return
		}
	}
}

// bounded ends a test whose guard is gone.
func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

const short = 200 * time.Millisecond

// wantStill requires that a transfer is given up for its pace.
func wantStill(t *testing.T, err error) {
	t.Helper()
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), errStill.Error()) {
		t.Errorf("got %v", err)
	}
}

var livenessCases = map[string]func(t *testing.T){
	"2.4-slowloris-headers": func(t *testing.T) {
		addr := answering(t, func(c net.Conn) {
			fmt.Fprint(c, "HTTP/1.1 200 OK\r\nX: ")
			drip(c, short/10)
		})
		_, _, err := plainHost(t, addr, short).Manifest(bounded(t), "v1", nil, 1<<20)
		wantStill(t, err)
	},
	"2.4-one-byte-now-and-then": func(t *testing.T) {
		addr := answering(t, func(c net.Conn) {
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", blobDesc.Size)
			drip(c, short/4)
		})
		_, err := readBlob(t, plainHost(t, addr, short))
		wantStill(t, err)
		addr = answering(t, func(c net.Conn) {
			fmt.Fprint(c, "HTTP/1.1 200 OK\r\n\r\n")
			drip(c, short/4)
		})
		_, _, err = plainHost(t, addr, short).Manifest(bounded(t), "v1", nil, 1<<20)
		wantStill(t, err)
	},
	"2.4-no-byte": func(t *testing.T) {
		addr := answering(t, func(c net.Conn) {
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\nxyz", blobDesc.Size)
		})
		_, err := readBlob(t, plainHost(t, addr, short))
		wantStill(t, err)
	},
	// Every connection brings one byte: progress, but none worth a slot.
	"2.4-one-byte-per-connection": func(t *testing.T) {
		s := blobServer(t, func(w http.ResponseWriter, r *http.Request, _ int) { serveRange(w, r, blobBody, 1) })
		if _, err := readBlob(t, repository(t, Client{}, s.host(), nil)); !errdefs.IsUnavailable(err) || len(s.ranges()) > 2*maxFails {
			t.Errorf("%d requests, %v", len(s.ranges()), err)
		}
	},
	"2.4-never-ending-body": func(t *testing.T) {
		var served atomic.Int64
		s := newServer(t, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			n, _ := io.CopyN(w, neverending{}, 1<<30)
			served.Add(n)
		})
		if got, err := readBlob(t, repository(t, Client{}, s.host(), nil)); !errdefs.IsDataLoss(err) || len(got) != len(blobBody) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	},
	"2.4-retry-after-for-ever": func(t *testing.T) {
		for _, after := range []string{"1000000000", "99999999999999999999", "Fri, 01 Jan 2100 00:00:00 GMT"} {
			s := newServer(t, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
				w.Header().Set("Retry-After", after)
				w.WriteHeader(http.StatusTooManyRequests)
			})
			_, _, err := repository(t, Client{}, s.host(), nil).Manifest(bounded(t), "v1", nil, 1<<20)
			if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "asks to wait") || s.count() != 1 {
				t.Errorf("%d requests, %v", s.count(), err)
			}
		}
	},
	"2.4-429-storm": func(t *testing.T) {
		for _, code := range []int{429, 408, 500, 502, 503, 504} {
			s := newServer(t, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
				w.Header().Set("Retry-After", "0")
				w.WriteHeader(code)
			})
			if _, _, err := repository(t, Client{}, s.host(), nil).Manifest(bounded(t), "v1", nil, 1<<20); err == nil || s.count() != lastAttempts {
				t.Errorf("%d: %d requests, %v", code, s.count(), err)
			}
		}
	},
	"2.4-429-storm-of-the-token-server": func(t *testing.T) {
		var n atomic.Int32
		var s *server
		s = newServer(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.URL.Path == "/token" {
				n.Add(1)
				w.WriteHeader(http.StatusTooManyRequests)
				return
			}
			challenging(bearerAt(s.URL+"/token"), nil)(w, r, next)
		})
		if _, _, err := repository(t, Client{}, s.host(), nil).Manifest(bounded(t), "v1", nil, 1<<20); !errdefs.IsResourceExhausted(err) || n.Load() > lastAttempts*2 {
			t.Errorf("%d requests, %v", n.Load(), err)
		}
	},
	"2.4-redirects-for-ever": func(t *testing.T) {
		s := newServer(t, func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			http.Redirect(w, r, fmt.Sprintf("/x%d", time.Now().UnixNano()), http.StatusFound)
		})
		if _, _, err := repository(t, Client{}, s.host(), nil).Manifest(bounded(t), "v1", nil, 1<<20); !errdefs.IsFailedPrecondition(err) || s.count() != maxRedirects+1 {
			t.Errorf("%d requests, %v", s.count(), err)
		}
	},
	"2.4-endless-interim-answers": func(t *testing.T) {
		addr := answering(t, func(c net.Conn) {
			for {
				if _, err := fmt.Fprint(c, "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"); err != nil {
					return
				}
			}
		})
		if _, _, err := plainHost(t, addr, short).Manifest(bounded(t), "v1", nil, 1<<20); !errdefs.IsUnavailable(err) {
			t.Errorf("got %v", err)
		}
	},
	"2.4-endless-headers": func(t *testing.T) {
		addr := answering(t, func(c net.Conn) {
			fmt.Fprint(c, "HTTP/1.1 200 OK\r\n")
			for {
				if _, err := fmt.Fprint(c, "X: "+strings.Repeat("y", 1000)+"\r\n"); err != nil {
					return
				}
			}
		})
		if _, _, err := plainHost(t, addr, time.Minute).Manifest(bounded(t), "v1", nil, 1<<20); !errdefs.IsUnavailable(err) || strings.Contains(err.Error(), errStill.Error()) {
			t.Errorf("got %v", err)
		}
	},
	"CVE-2026-56860-endless-handshake": func(t *testing.T) {
		addr := rawServer(t, func(c net.Conn) {
			_, _ = c.Write([]byte{22, 3, 3, 0x40, 0}) // a handshake record that does not end
			drip(c, short/10)
		})
		dir := hostsDir(t, "_default", fmt.Sprintf("server = \"https://%s\"\n", addr))
		r := repository(t, Client{HostsDirs: []string{dir}, ProgressTimeout: short}, "127.0.0.1:1", nil)
		if _, _, err := r.Manifest(bounded(t), "v1", nil, 1<<20); !errdefs.IsUnavailable(err) {
			t.Errorf("got %v", err)
		}
	},
	"2.4-size-does-not-overflow": func(t *testing.T) {
		s := newServer(t, nil)
		for _, size := range []int64{-1, -1 << 63} {
			b := repository(t, Client{Ranges: 4}, s.host(), nil).Open(bounded(t), ocispec.Descriptor{Digest: blobDesc.Digest, Size: size})
			if _, err := b.Read(make([]byte, 1)); !errdefs.IsInvalidArgument(err) {
				t.Errorf("size %d: %v", size, err)
			}
		}
		big := ocispec.Descriptor{Digest: digest.FromString("x"), Size: 1<<63 - 1}
		b := repository(t, Client{Ranges: 4}, s.host(), nil).Open(bounded(t), big)
		defer b.Close()
		if _, err := b.Read(make([]byte, 1)); !errdefs.IsNotFound(err) {
			t.Errorf("got %v", err)
		}
	},
	"2.4-hosts-directory-by-hostile-name": func(t *testing.T) {
		root := t.TempDir()
		if err := os.WriteFile(filepath.Join(root, "hosts.toml"), []byte("server = \"https://evil.example.com\""), 0o600); err != nil {
			t.Fatal(err)
		}
		certs := filepath.Join(root, "certs.d")
		if err := os.Mkdir(certs, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, ref := range []string{"../x/y", "..:5000/x", "./x", "_default/x", "a/../../b", "%2e%2e/x"} {
			named, err := reference.ParseDockerRef(ref)
			if err != nil {
				continue
			}
			configs, err := (&Client{HostsDirs: []string{certs}}).hostConfigs(reference.Domain(named))
			if err != nil || configs[0].host == "evil.example.com" {
				t.Errorf("%s: %+v, %v", ref, configs, err)
			}
		}
	},
}
