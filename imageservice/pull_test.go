package imageservice

import (
	"bytes"
	"encoding/json"
	"fmt"
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

// recorder keeps an answer.
type recorder struct {
	header http.Header
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) Write(b []byte) (int, error) { return r.body.Write(b) }
func (r *recorder) WriteHeader(int)             {}

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
