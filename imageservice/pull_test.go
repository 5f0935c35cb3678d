package imageservice

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestPullEachCompression(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	img := imageOf(t,
		gzipLayer(t, dir("a/", 0o755), file("a/gzip", "1")),
		zstdLayer(t, dir("a/", 0o755), file("a/zstd", "2")),
		plainLayer(t, dir("a/", 0o755), file("a/plain", "3")))
	ref := reg.push(t, "mixed", "v1", img)
	s := open(t, testConfig(t))
	id := pull(t, s, ref)
	if name, _ := img.ConfigName(); id != name.String() {
		t.Errorf("image_ref %s, not the config's digest %s", id, name)
	}
	got := status(t, s, ref)
	d, _ := img.Digest()
	if got.Id != id || !slices.Equal(got.RepoTags, []string{ref}) || !slices.Equal(got.RepoDigests, []string{reg.host() + "/mixed@" + d.String()}) {
		t.Errorf("image %v", got)
	}
	if got.Size == 0 || got.Uid.GetValue() != 1000 || got.Username != "" || got.Spec.GetImage() != id {
		t.Errorf("image %v", got)
	}
	root, err := s.Mount(t.Context(), "c1", id)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"gzip": "1", "zstd": "2", "plain": "3"} {
		if body, err := os.ReadFile(filepath.Join(root, "a", name)); err != nil || string(body) != want {
			t.Errorf("%s: %q, %v", name, body, err)
		}
	}
}

func TestPullFromIndex(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	platform := func(arch, variant, content string) mutate.IndexAddendum {
		img := imageOf(t, gzipLayer(t, file("arch", content)))
		cf, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		cf = cf.DeepCopy()
		cf.OS, cf.Architecture, cf.Variant = "linux", arch, variant
		if img, err = mutate.ConfigFile(img, cf); err != nil {
			t.Fatal(err)
		}
		img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
		reg.push(t, "multi", "x-"+arch, img)
		return mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch, Variant: variant}}}
	}
	attestation := platform("unknown", "", "attestation")
	attestation.Descriptor.Platform.OS = "unknown"
	attestation.Descriptor.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest"}
	mine := platform(runtime.GOARCH, "", "mine")
	other := platform("s390x", "", "other")
	inner := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), attestation, other, mine)
	reg.pushManifest(t, "multi", "v1", inner)
	outer := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.DockerManifestList),
		mutate.IndexAddendum{Add: inner, Descriptor: v1.Descriptor{MediaType: types.OCIImageIndex}})
	reg.pushManifest(t, "multi", "nested", outer)
	reg.pushManifest(t, "multi", "foreign", mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), other, attestation))

	s := open(t, testConfig(t))
	want, _ := mine.Add.(v1.Image).ConfigName()
	for _, tag := range []string{"v1", "nested"} {
		if id := pull(t, s, reg.host()+"/multi:"+tag); id != want.String() {
			t.Errorf("%s: %s instead of %s", tag, id, want)
		}
	}
	d, _ := inner.Digest()
	if got := status(t, s, want.String()); !slices.Contains(got.RepoDigests, reg.host()+"/multi@"+d.String()) {
		t.Errorf("repo digests %v lack the index", got.RepoDigests)
	}
	err := pullError(t, s, reg.host()+"/multi:foreign")
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "linux/s390x") || strings.Contains(err.Error(), "unknown") {
		t.Errorf("platforms that there are: %v", err)
	}
}

func TestTagsAndDigests(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	one := imageOf(t, gzipLayer(t, file("v", "1")))
	two := imageOf(t, gzipLayer(t, file("v", "2")))
	a := reg.push(t, "app", "latest", one)
	reg.push(t, "app", "v1", one)
	reg.push(t, "other/app", "v1", one)
	s := open(t, testConfig(t))
	id := pull(t, s, a)
	pull(t, s, reg.host()+"/app:v1")
	pull(t, s, reg.host()+"/other/app:v1")
	got := status(t, s, id)
	if len(got.RepoTags) != 3 || len(got.RepoDigests) != 2 {
		t.Errorf("names %v %v", got.RepoTags, got.RepoDigests)
	}
	if n := reg.count("GET", "/blobs/"); n != 2 {
		t.Errorf("%d blobs fetched for one image", n)
	}

	// A tag that moves takes itself from the old image at once.
	reg.push(t, "app", "latest", two)
	id2 := pull(t, s, a)
	if id2 == id || !slices.Equal(status(t, s, id2).RepoTags, []string{a}) || slices.Contains(status(t, s, id).RepoTags, a) {
		t.Errorf("after the move: %v, %v", status(t, s, id), status(t, s, id2))
	}
	// With tag and digest the digest counts, and the tag is not stored.
	d, _ := one.Digest()
	if got := pull(t, s, a+"@"+d.String()); got != id {
		t.Errorf("by digest: %s", got)
	}
	if got := status(t, s, a); got.Id != id2 {
		t.Errorf("the tag went with the digest: %v", got)
	}
	for _, ref := range []string{id, id[7:], id[:20], id[7:20], reg.host() + "/app@" + d.String(), reg.host() + "/app:v1"} {
		if img, err := s.Resolve(t.Context(), ref); err != nil || img.ID != id {
			t.Errorf("Resolve(%q): %v, %v", ref, img.ID, err)
		}
	}
	for _, ref := range []string{"nothing", "sha256:0000", "a:b:c", "", "../x"} {
		if _, err := s.Resolve(t.Context(), ref); !errdefs.IsNotFound(err) {
			t.Errorf("Resolve(%q): %v", ref, err)
		}
	}
	list, err := s.ListImages(t.Context(), &runtimeapi.ListImagesRequest{Filter: &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: a}}})
	if err != nil || len(list.Images) != 1 || list.Images[0].Id != id2 {
		t.Errorf("filtered list: %v, %v", list, err)
	}
	if list, err = s.ListImages(t.Context(), &runtimeapi.ListImagesRequest{}); err != nil || len(list.Images) != 2 {
		t.Errorf("list: %v, %v", list, err)
	}
}

func TestPullUnchangedFetchesNothing(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	ref := reg.push(t, "app", "latest", imageOf(t, gzipLayer(t, file("f", ""))))
	s := open(t, testConfig(t))
	id := pull(t, s, ref)
	reg.reset()
	if again := pull(t, s, ref); again != id || reg.count("GET", "/manifests/")+reg.count("GET", "/blobs/") != 0 {
		t.Errorf("%s, requests %v", again, reg.seen)
	}
}

func TestConcurrentPullsDownloadOnce(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	shared := gzipLayer(t, file("shared", strings.Repeat("s", 100000)))
	a := imageOf(t, shared, gzipLayer(t, file("a", "")), gzipLayer(t, file("implied/f", "")))
	refs := []string{
		reg.push(t, "a", "latest", a),
		reg.push(t, "a", "again", a),
		reg.push(t, "b", "latest", imageOf(t, shared, gzipLayer(t, file("b", "")))),
	}
	reg.intercept(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.URL.Path, "/blobs/") {
			time.Sleep(20 * time.Millisecond) // long enough for all to ask
		}
		next.ServeHTTP(w, r)
	})
	s := open(t, testConfig(t))
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			_, err := s.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: refs[i%3]}})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := reg.count("GET", "/blobs/"); n != 6 { // two configs, four layers
		t.Errorf("%d blob requests: %v", n, reg.seen)
	}
}

// TestSharedDependentLayersOnce: layers that depend on those below them are
// completed by one pull, and the others wait for it.
func TestSharedDependentLayersOnce(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	below := []v1.Layer{gzipLayer(t, file("implied/a", "a")), gzipLayer(t, file("implied/b", "b"), link("h", "implied/a")), gzipLayer(t, file("other/c", "c"))}
	var refs []string
	for i := range 5 {
		refs = append(refs, reg.push(t, fmt.Sprint("app", i), "latest", imageOf(t, append(slices.Clone(below), gzipLayer(t, file("own/f", fmt.Sprint(i))))...)))
	}
	s := open(t, testConfig(t))
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if _, err := s.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: refs[i%5]}}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := reg.count("GET", "/blobs/"); n != 13 { // five configs, three shared layers, five own
		t.Errorf("%d blob requests: %v", n, reg.seen)
	}
	if len(s.parked)+len(s.claims) != 0 || len(leftovers(t, s)) != 8 {
		t.Errorf("left: %v, %v, %v", s.parked, s.claims, leftovers(t, s))
	}
	checkFigures(t, s)
}

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

// recorder keeps an answer.
type recorder struct {
	header http.Header
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) Write(b []byte) (int, error) { return r.body.Write(b) }
func (r *recorder) WriteHeader(int)             {}

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

func TestVerboseStatusAndFsInfo(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	ref := reg.push(t, "app", "latest", imageOf(t, gzipLayer(t, file("f", "x"))))
	cfg := testConfig(t)
	cfg.Pinned = []string{"*/app:*"}
	s := open(t, cfg)
	empty, err := s.ImageFsInfo(t.Context(), nil)
	if err != nil || empty.ImageFilesystems[0].UsedBytes.GetValue() != 0 {
		t.Errorf("empty: %v, %v", empty, err)
	}
	id := pull(t, s, ref)
	resp, err := s.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: id}, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var info struct {
		ImageSpec struct{ Config struct{ User string } }
	}
	if err := json.Unmarshal([]byte(resp.Info["info"]), &info); err != nil || info.ImageSpec.Config.User != "1000:1000" || !resp.Image.Pinned {
		t.Errorf("%v, %v, pinned %v", info, err, resp.Image.Pinned)
	}
	if _, err := s.Mount(t.Context(), "c1", id); err != nil {
		t.Fatal(err)
	}
	full, err := s.ImageFsInfo(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range append(full.ImageFilesystems, full.ContainerFilesystems...) {
		if f.Timestamp == 0 || f.FsId.Mountpoint != s.Mountpoint() || f.UsedBytes.GetValue() == 0 || f.InodesUsed.GetValue() == 0 {
			t.Errorf("%v", f)
		}
	}
}
