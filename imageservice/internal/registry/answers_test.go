package registry

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var answerCases = map[string]func(t *testing.T){
	"CVE-2020-1702-endless-bodies": func(t *testing.T) {
		var served atomic.Int64
		endless := func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			if strings.Contains(r.URL.Path, "/manifests/") {
				fmt.Fprint(w, `{"x":"`)
			}
			n, _ := io.CopyN(w, neverending{}, 1<<30)
			served.Add(n)
		}
		s := newServer(t, endless)
		r := repository(t, Client{}, s.host(), nil)
		if _, _, err := r.Manifest(t.Context(), "v1", nil, 1<<20); !errdefs.IsInvalidArgument(err) {
			t.Errorf("manifest: %v", err)
		}
		if _, err := r.Blob(t.Context(), blobDesc); !errdefs.IsDataLoss(err) {
			t.Errorf("config: %v", err)
		}
		var a *server
		a = newServer(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.URL.Path == "/token" {
				fmt.Fprint(w, `{"token":"`)
				endless(w, r, next)
				return
			}
			challenging(bearerAt(a.URL+"/token"), func(w http.ResponseWriter, _ *http.Request) {})(w, r, next)
		})
		if _, _, err := repository(t, Client{}, a.host(), nil).Manifest(t.Context(), "v1", nil, 1<<20); !errdefs.IsDataLoss(err) {
			t.Errorf("token: %v", err)
		}
		a.Close() // waits for what it is serving
		s.Close()
		if n := served.Load(); n > 64<<20 {
			t.Errorf("%d bytes were served", n)
		}
	},
	"CVE-2020-1702-document-of-any-size": func(t *testing.T) {
		s := newServer(t, nil)
		desc := ocispec.Descriptor{Digest: blobDesc.Digest, Size: 1 << 62}
		if _, err := repository(t, Client{}, s.host(), nil).Blob(t.Context(), desc); !errdefs.IsInvalidArgument(err) || s.count() > 0 {
			t.Errorf("got %v", err)
		}
	},
	"CVE-2024-3727-digests": func(t *testing.T) {
		hex := strings.Repeat("a", 64)
		s := newServer(t, nil)
		r := repository(t, Client{}, s.host(), nil)
		for _, d := range []string{"sha256:../../x", "sha256:", ":", "md5:" + hex[:32], "sha256:" + strings.ToUpper(hex), "sha256:" + hex[1:], "sha256:" + hex + "a", "sha256:..?a=b", "sha512:" + hex + hex} {
			if _, _, err := r.Manifest(t.Context(), d, nil, 1<<20); !errdefs.IsInvalidArgument(err) {
				t.Errorf("manifest %s: %v", d, err)
			}
			if _, err := r.Blob(t.Context(), ocispec.Descriptor{Digest: digest.Digest(d), Size: 1}); !errdefs.IsInvalidArgument(err) {
				t.Errorf("blob %s: %v", d, err)
			}
			b := r.Open(t.Context(), ocispec.Descriptor{Digest: digest.Digest(d), Size: 1})
			if _, err := b.Read(make([]byte, 1)); !errdefs.IsInvalidArgument(err) {
				t.Errorf("layer %s: %v", d, err)
			}
			b.Close()
		}
		if s.count() > 0 {
			t.Errorf("%d requests were made", s.count())
		}
	},
	"CVE-2024-3727-docker-content-digest": func(t *testing.T) {
		for _, d := range []string{"sha256:../../x", "x", "md5:00", "sha256:" + strings.Repeat("A", 64), "sha256:" + strings.Repeat("a", 64) + "/.."} {
			s := newServer(t, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
				w.Header().Set("Docker-Content-Digest", d)
				_, _ = w.Write(manifestBody)
			})
			r := repository(t, Client{}, s.host(), nil)
			if _, _, err := r.Manifest(t.Context(), "v1", nil, 1<<20); !errdefs.IsDataLoss(err) {
				t.Errorf("GET %s: %v", d, err)
			}
			if got, err := r.Digest(t.Context(), "v1", nil); !errdefs.IsDataLoss(err) || got != "" {
				t.Errorf("HEAD %s: %s %v", d, got, err)
			}
		}
	},
	"GHSA-qv35-3gw6-8q4j-pinned-digest": func(t *testing.T) {
		want := digest.FromBytes(manifestBody)
		other := []byte(`{"schemaVersion":2}`)
		for _, said := range []digest.Digest{"", want, digest.FromBytes(other)} {
			s := newServer(t, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
				w.Header().Set("Docker-Content-Digest", said.String())
				_, _ = w.Write(other)
			})
			if _, _, err := repository(t, Client{}, s.host(), nil).Manifest(t.Context(), want.String(), nil, 1<<20); !errdefs.IsDataLoss(err) {
				t.Errorf("said %q: %v", said, err)
			}
		}
		s := newServer(t, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.Header().Set("Docker-Content-Digest", digest.FromBytes(other).String())
			_, _ = w.Write(manifestBody)
		})
		if _, _, err := repository(t, Client{}, s.host(), nil).Manifest(t.Context(), "v1", nil, 1<<20); !errdefs.IsDataLoss(err) {
			t.Errorf("a tag whose digest is said to be another: %v", err)
		}
	},
	// What HEAD says is believed of names only; the content is what GET gives.
	"2.4-other-answer-to-get": func(t *testing.T) {
		s := newServer(t, func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			if r.Method == http.MethodHead {
				w.Header().Set("Docker-Content-Digest", blobDesc.Digest.String())
				return
			}
			_, _ = w.Write(manifestBody)
		})
		r := repository(t, Client{}, s.host(), nil)
		if d, err := r.Digest(t.Context(), "v1", nil); d != blobDesc.Digest || err != nil {
			t.Fatal(d, err)
		}
		if desc, _, err := r.Manifest(t.Context(), "v1", nil, 1<<20); desc.Digest != digest.FromBytes(manifestBody) || err != nil {
			t.Errorf("%s, %v", desc.Digest, err)
		}
	},
	"2.4-https-to-http-redirect": func(t *testing.T) {
		a := newAttacker(t, nil)
		ca := newAuthority(t)
		for _, to := range []string{a.URL, "http://registry.example.com/", "ftp://x/", "gopher://x/"} {
			s := secureRegistry(t, ca, func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
				http.Redirect(w, r, to, http.StatusFound)
			})
			r := trusting(t, ca, s, nil)
			r.hosts[0].transport.loopback = true // it is the scheme that is refused
			if err := pull(t, r); !errdefs.IsPermissionDenied(err) {
				t.Errorf("%s: %v", to, err)
			}
		}
		a.learnt(t, false)
	},
	"CVE-2026-33814-no-http2": func(t *testing.T) {
		ca := newAuthority(t)
		var proto atomic.Int32
		s := secureRegistry(t, ca, func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			proto.Store(int32(r.ProtoMajor))
			_, _ = w.Write(manifestBody)
		})
		if _, _, err := trusting(t, ca, s, nil).Manifest(t.Context(), "v1", nil, 1<<20); err != nil || proto.Load() != 1 {
			t.Errorf("HTTP/%d, %v", proto.Load(), err)
		}
	},
	"CVE-2025-61726-long-location": func(t *testing.T) {
		s := newServer(t, func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			w.Header().Set("Location", "/x?"+strings.Repeat("a=b&", 100_000))
			w.WriteHeader(http.StatusFound)
		})
		if err := pull(t, repository(t, Client{}, s.host(), nil)); !errdefs.IsUnavailable(err) || len(err.Error()) > 1000 {
			t.Errorf("got %.300v", err)
		}
	},
	"2.4-content-encoding": func(t *testing.T) {
		s := newServer(t, func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(manifestBody)
		})
		if _, _, err := repository(t, Client{}, s.host(), nil).Manifest(t.Context(), "v1", nil, 1<<20); !errdefs.IsDataLoss(err) {
			t.Errorf("got %v", err)
		}
	},
	"2.4-error-body": func(t *testing.T) {
		var served atomic.Int64
		for _, body := range []string{
			`{"errors":[{"code":"A\u001b[31m\nB","message":"see http://u:p4ss@x/y?sig=p4ss \u0000\r\n\u202e"}]}`,
			`{"errors":[{"code":"A","message":"` + strings.Repeat("long ", 1000) + `"}]}`, "",
		} {
			s := newServer(t, func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
				w.WriteHeader(http.StatusTeapot)
				if body == "" {
					n, _ := io.CopyN(w, neverending{}, 1<<30)
					served.Add(n)
				}
				fmt.Fprint(w, body)
			})
			err := pull(t, repository(t, Client{}, s.host(), nil))
			s.Close()
			if err == nil || strings.ContainsAny(err.Error(), "\x1b\n\r\x00\u202e") || strings.Contains(err.Error(), "p4ss") || len(err.Error()) > 1000 {
				t.Errorf("got %q", err)
			}
		}
		if served.Load() > 64<<20 {
			t.Errorf("%d bytes were served", served.Load())
		}
	},
	"2.4-longer-than-its-size": func(t *testing.T) {
		for _, sized := range []bool{true, false} {
			s := newServer(t, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
				if sized {
					w.Header().Set("Content-Length", fmt.Sprint(len(blobBody)+1))
				}
				_, _ = w.Write(blobBody)
				_, _ = w.Write([]byte{0})
			})
			got, err := readBlob(t, repository(t, Client{}, s.host(), nil))
			if !errdefs.IsDataLoss(err) || len(got) > len(blobBody) {
				t.Errorf("sized %v: %d bytes, %v", sized, len(got), err)
			}
		}
	},
	"2.4-shorter-than-its-size": func(t *testing.T) {
		s := newServer(t, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write(blobBody[:1000])
		})
		if _, err := readBlob(t, repository(t, Client{}, s.host(), nil)); !errdefs.IsDataLoss(err) {
			t.Errorf("got %v", err)
		}
		s = newServer(t, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.(http.Flusher).Flush() // without a length
			_, _ = w.Write(blobBody[:1000])
		})
		if _, err := readBlob(t, repository(t, Client{}, s.host(), nil)); !errdefs.IsUnavailable(err) {
			t.Errorf("without a length: %v", err)
		}
	},
	"2.4-wrong-content-range": func(t *testing.T) {
		for _, answer := range []string{"bytes 7-299999/300000", "bytes 100000-299999/300001", "bytes 100000-99999/300000", "bytes 100000-300000/300000", "bytes */300000", "items 100000-299999/300000", "x", ""} {
			s := blobServer(t, func(w http.ResponseWriter, r *http.Request, n int) {
				if n > 1 {
					w.Header().Set("Content-Range", answer)
					w.WriteHeader(http.StatusPartialContent)
					_, _ = w.Write(blobBody[100_000:])
					return
				}
				serveRange(w, r, blobBody, 100_000)
			})
			if got, err := readBlob(t, repository(t, Client{}, s.host(), nil)); !errdefs.IsDataLoss(err) || !bytes.Equal(got, blobBody[:100_000]) {
				t.Errorf("%q: %d bytes, %v", answer, len(got), err)
			}
		}
	},
}
