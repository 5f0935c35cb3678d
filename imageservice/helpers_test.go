package imageservice

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	ggcrregistry "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2/ktesting"
)

// needRoot skips what needs the kernel as root: owners, devices, mounts.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("must run as root in CI: layers have owners and devices, and are mounted")
		}
		t.Skip("needs root: layers have owners and devices, and are mounted")
	}
}

// testRegistry is a real registry on loopback that counts its requests.
type testRegistry struct {
	*httptest.Server
	handler http.Handler

	mu   sync.Mutex
	seen map[string]int // "GET /v2/…" → times
	// wrap, if set, may answer a request instead of the registry.
	wrap func(w http.ResponseWriter, r *http.Request, next http.Handler)
}

func newRegistry(t testing.TB) *testRegistry {
	t.Helper()
	reg := &testRegistry{
		handler: ggcrregistry.New(ggcrregistry.Logger(log.New(io.Discard, "", 0))),
		seen:    make(map[string]int),
	}
	reg.Server = httptest.NewUnstartedServer(reg)
	reg.Server.Config.ErrorLog = log.New(io.Discard, "", 0) // the attempt of TLS
	reg.Server.Start()
	t.Cleanup(reg.Server.Close)
	return reg
}

func (reg *testRegistry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	reg.mu.Lock()
	reg.seen[r.Method+" "+r.URL.Path]++
	wrap := reg.wrap
	reg.mu.Unlock()
	if wrap != nil && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
		wrap(w, r, reg.handler)
		return
	}
	reg.handler.ServeHTTP(w, r)
}

func (reg *testRegistry) intercept(wrap func(w http.ResponseWriter, r *http.Request, next http.Handler)) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	reg.wrap = wrap
}

// count adds up the requests whose method and path contain all parts.
func (reg *testRegistry) count(parts ...string) int {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	total := 0
next:
	for key, n := range reg.seen {
		for _, p := range parts {
			if !strings.Contains(key, p) {
				continue next
			}
		}
		total += n
	}
	return total
}

func (reg *testRegistry) reset() {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	clear(reg.seen)
}

func (reg *testRegistry) host() string {
	u, _ := url.Parse(reg.URL)
	return u.Host
}

func (reg *testRegistry) put(t testing.TB, method, path, contentType string, body []byte) {
	t.Helper()
	req, err := http.NewRequest(method, reg.URL+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		text, _ := io.ReadAll(resp.Body)
		t.Fatalf("%s %s: %s: %s", method, path, resp.Status, text)
	}
}

func (reg *testRegistry) pushBlob(t testing.TB, repo string, digest v1.Hash, body []byte) {
	t.Helper()
	reg.put(t, http.MethodPost, fmt.Sprintf("/v2/%s/blobs/uploads/?digest=%s", repo, digest), "application/octet-stream", body)
}

// push puts an image into the registry and returns its full name.
func (reg *testRegistry) push(t testing.TB, repo, ref string, img v1.Image) string {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		reg.pushLayer(t, repo, l)
	}
	config, err := img.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	name, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	reg.pushBlob(t, repo, name, config)
	return reg.pushManifest(t, repo, ref, img)
}

func (reg *testRegistry) pushLayer(t testing.TB, repo string, l v1.Layer) {
	t.Helper()
	rc, err := l.Compressed()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	body, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	d, err := l.Digest()
	if err != nil {
		t.Fatal(err)
	}
	reg.pushBlob(t, repo, d, body)
}

type manifested interface {
	RawManifest() ([]byte, error)
	MediaType() (types.MediaType, error)
	Digest() (v1.Hash, error)
}

func (reg *testRegistry) pushManifest(t testing.TB, repo, ref string, m manifested) string {
	t.Helper()
	body, err := m.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	mt, err := m.MediaType()
	if err != nil {
		t.Fatal(err)
	}
	d, err := m.Digest()
	if err != nil {
		t.Fatal(err)
	}
	reg.put(t, http.MethodPut, fmt.Sprintf("/v2/%s/manifests/%s", repo, d), string(mt), body)
	reg.put(t, http.MethodPut, fmt.Sprintf("/v2/%s/manifests/%s", repo, ref), string(mt), body)
	return reg.host() + "/" + repo + ":" + ref
}

// entry is one line of a layer: a tar header with content.
type entry struct {
	tar.Header
	content string
}

func dir(name string, mode int64) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode}}
}

func file(name, content string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, content: content}
}

func link(name, target string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}}
}

func symlink(name, target string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}}
}

func tarOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, e := range entries {
		e.Size = int64(len(e.content))
		if err := tw.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// testLayer has its diffID of the tar, unlike static's.
type testLayer struct {
	v1.Layer
	tar []byte
}

func (l testLayer) DiffID() (v1.Hash, error) {
	h, _, err := v1.SHA256(bytes.NewReader(l.tar))
	return h, err
}

func (l testLayer) Uncompressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.tar)), nil
}

func gzipLayer(t testing.TB, entries ...entry) v1.Layer {
	return gzipTar(t, tarOf(t, entries...))
}

func gzipTar(t testing.TB, body []byte) v1.Layer {
	t.Helper()
	var buf bytes.Buffer
	zw := gzip.NewWriter(&buf)
	if _, err := zw.Write(body); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return testLayer{static.NewLayer(buf.Bytes(), types.OCILayer), body}
}

func zstdLayer(t testing.TB, entries ...entry) v1.Layer {
	t.Helper()
	body := tarOf(t, entries...)
	zw, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return testLayer{static.NewLayer(zw.EncodeAll(body, nil), types.OCILayerZStd), body}
}

func plainLayer(t testing.TB, entries ...entry) v1.Layer {
	body := tarOf(t, entries...)
	return testLayer{static.NewLayer(body, types.OCIUncompressedLayer), body}
}

func imageOf(t testing.TB, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(mutate.MediaType(empty.Image, types.OCIManifestSchema1), layers...)
	if err != nil {
		t.Fatal(err)
	}
	img, err = mutate.Config(img, v1.Config{Entrypoint: []string{"/bin/true"}, User: "1000:1000"})
	if err != nil {
		t.Fatal(err)
	}
	return mutate.ConfigMediaType(img, types.OCIConfigJSON)
}

func testConfig(t testing.TB) Config {
	base := t.TempDir()
	return Config{Root: filepath.Join(base, "root"), RunDir: filepath.Join(base, "run")}
}

func open(t testing.TB, cfg Config) *Service {
	t.Helper()
	_, ctx := ktesting.NewTestContext(t)
	s, err := Open(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Retain(context.Background(), nil); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func pull(t testing.TB, s *Service, ref string) string {
	t.Helper()
	resp, err := s.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		t.Fatal(err)
	}
	return resp.ImageRef
}

func pullError(t testing.TB, s *Service, ref string) error {
	t.Helper()
	_, err := s.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err == nil {
		t.Fatalf("pull of %s succeeded", ref)
	}
	return err
}

// status is the image under a reference, nil if there is none.
func status(t testing.TB, s *Service, ref string) *runtimeapi.Image {
	t.Helper()
	resp, err := s.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		t.Fatal(err)
	}
	return resp.Image
}

// leftovers has everything deleted that nobody needs, and lists what is then in
// the layer, tmp and trash directories.
func leftovers(t testing.TB, s *Service) []string {
	t.Helper()
	return leftoversAt(t, s, time.Now())
}

func leftoversAt(t testing.TB, s *Service, now time.Time) []string {
	t.Helper()
	if _, err := s.reap(now); err != nil {
		t.Error(err)
	}
	s.emptyTrash(map[string]bool{})
	var found []string
	for _, d := range []string{layersDir, tmpDir, trashDir} {
		entries, err := os.ReadDir(s.path(d))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			found = append(found, d+"/"+e.Name())
		}
	}
	return found
}
