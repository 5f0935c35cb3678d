package imageservice

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// document is a manifest that the registry answers whatever it really has.
type document struct{ contentType, body string }

// answer makes the registry give documents by tag or digest.
func (reg *testRegistry) answer(docs map[string]document) {
	reg.intercept(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		_, ref, ok := strings.Cut(r.URL.Path, "/manifests/")
		doc, mine := docs[ref]
		if !ok || !mine {
			next.ServeHTTP(w, r)
			return
		}
		if doc.contentType != "" {
			w.Header().Set("Content-Type", doc.contentType)
		} else {
			w.Header()["Content-Type"] = nil
		}
		_, _ = w.Write([]byte(doc.body))
	})
}

func rawManifest(t *testing.T, m manifested) string {
	t.Helper()
	body, err := m.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// entryOf is the entry of an index for a document, changed by the test.
func entryOf(doc document, change func(*ocispec.Descriptor)) (ref, entry string) {
	d := ocispec.Descriptor{MediaType: doc.contentType, Digest: digest.FromString(doc.body), Size: int64(len(doc.body))}
	ref = d.Digest.String()
	if change != nil {
		change(&d)
	}
	body, _ := json.Marshal(d)
	return ref, string(body)
}

func indexOf(entries ...string) document {
	return document{string(types.OCIImageIndex), `{"schemaVersion":2,"mediaType":"` + string(types.OCIImageIndex) + `","manifests":[` + strings.Join(entries, ",") + `]}`}
}

// TestSecurity: an image that is here stays as it is, whatever its registry
// answers later, and nothing of what was refused is left.
func TestSecurity(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	good := imageOf(t, gzipLayer(t, file("f", "good")))
	next := imageOf(t, gzipLayer(t, file("f", "next")), gzipLayer(t, file("g", "next")))
	ref := reg.push(t, "app", "latest", good)
	reg.push(t, "app", "next", next)
	cfg := testConfig(t)
	cfg.Limits = Limits{Layers: 2, IndexDepth: 2, ManifestSize: 64 << 10}
	s := open(t, cfg)
	pull(t, s, ref)
	before := status(t, s, ref).String()

	m := document{string(types.OCIManifestSchema1), rawManifest(t, next)}
	replace := func(old, new string) document {
		body := strings.Replace(m.body, old, new, 1)
		if body == m.body {
			t.Fatalf("%s has no %s", m.body, old)
		}
		return document{m.contentType, body}
	}
	both := strings.Replace(m.body, `"layers"`, `"manifests":[],"layers"`, 1)
	nested := m
	deep := map[string]document{}
	for range 3 {
		r, e := entryOf(nested, nil)
		deep[r] = nested
		nested = indexOf(e)
	}
	child := func(change func(*ocispec.Descriptor)) map[string]document {
		r, e := entryOf(m, change)
		return map[string]document{r: m, "latest": indexOf(e)}
	}
	swapped := child(nil)
	mine, entry := entryOf(m, nil)
	swapped[mine] = document{m.contentType, rawManifest(t, good)}
	typed := child(nil)
	typed[mine] = document{string(types.OCIImageIndex), m.body}
	typed["latest"] = indexOf(entry)
	config, _ := next.RawConfigFile()
	foreign := strings.Replace(string(config), `"architecture":"`, `"architecture":"s390x`, 1)
	layers, _ := next.Layers()
	one, _ := layers[0].DiffID()
	two, _ := layers[1].DiffID()
	crossed := strings.NewReplacer(one.String(), two.String(), two.String(), one.String()).Replace(string(config))
	withConfig := func(body string) map[string]document {
		d := digest.FromString(body)
		reg.pushBlob(t, "app", v1.Hash{Algorithm: "sha256", Hex: d.Encoded()}, []byte(body))
		old, _ := next.ConfigName()
		doc := strings.Replace(m.body, old.String(), d.String(), 1)
		size := fmt.Sprintf(`"size":%d`, len(config))
		return map[string]document{"latest": {m.contentType, strings.Replace(doc, size, fmt.Sprintf(`"size":%d`, len(body)), 1)}}
	}

	for id, c := range map[string]struct {
		docs map[string]document
		want string
	}{
		"GHSA-5j5w-g665-5m35-as-manifest":   {map[string]document{"latest": {string(types.OCIManifestSchema1), both}}, "both"},
		"GHSA-5j5w-g665-5m35-as-index":      {map[string]document{"latest": {string(types.OCIImageIndex), both}}, "both"},
		"GHSA-5j5w-g665-5m35-as-nothing":    {map[string]document{"latest": {"", both}}, "both"},
		"GHSA-5j5w-g665-5m35-content-type":  {map[string]document{"latest": {string(types.DockerManifestSchema2), m.body}}, "says it is"},
		"GHSA-5j5w-g665-5m35-entry-type":    {child(func(d *ocispec.Descriptor) { d.MediaType = string(types.DockerManifestSchema2) }), "to the registry"},
		"GHSA-5j5w-g665-5m35-child-type":    {typed, "to the registry"},
		"GHSA-5j5w-g665-5m35-schema-1":      {map[string]document{"latest": {"application/vnd.docker.distribution.manifest.v1+prettyjws", `{"schemaVersion":1,"fsLayers":[]}`}}, "schema 1"},
		"2.2-child-larger":                  {child(func(d *ocispec.Descriptor) { d.Size-- }), "bytes where the index"},
		"2.2-child-smaller":                 {child(func(d *ocispec.Descriptor) { d.Size++ }), "bytes where the index"},
		"CVE-2022-24778-child-swapped":      {swapped, "instead of"},
		"CVE-2022-24778-other-platform":     {withConfig(foreign), "s390x"},
		"2.2-index-depth":                   {mapsOf(deep, map[string]document{"latest": nested}), "more than 2 indexes"},
		"2.2-layers":                        {map[string]document{"latest": replace(`"layers":[`, `"layers":[`+layerEntry(t, next)+`,`)}, "3 layers, more than 2"},
		"2.2-manifest-size":                 {map[string]document{"latest": {m.contentType, m.body + strings.Repeat(" ", 64<<10)}}, "more than 65536"},
		"2.2-diff-ids-crossed":              {withConfig(crossed), "instead of"},
		"2.2-config-of-other-size":          {map[string]document{"latest": replace(fmt.Sprintf(`"size":%d`, len(config)), fmt.Sprintf(`"size":%d`, len(config)-1))}, "bytes"},
		"CVE-2026-24054-fewer-diff-ids":     {withConfig(strings.Replace(string(config), `,"`+two.String()+`"`, "", 1)), "1 diff_ids for 2 layers"},
		"CVE-2024-3727-digest-of-the-entry": {map[string]document{"latest": indexOf(`{"mediaType":"x","digest":"sha256:../../../../v2/","size":5}`)}, "digest"},
	} {
		t.Run(id, func(t *testing.T) {
			reg.answer(c.docs)
			defer reg.intercept(nil)
			err := pullError(t, s, ref)
			if !strings.Contains(err.Error(), c.want) || errdefs.IsUnavailable(err) {
				t.Errorf("got %v, not %q", err, c.want)
			}
			if got := status(t, s, ref); got.String() != before {
				t.Errorf("the image that was here is %v", got)
			}
			if left := leftoversAt(t, s, farFuture); len(left) != 1 {
				t.Errorf("left: %v", left)
			}
			checkFigures(t, s)
		})
	}
	t.Run("CVE-2024-36621", testPullRemoveRace)
	t.Run("2.2-duplicate-layers", testLayerTwice)
	t.Run("2.2-good-document", func(t *testing.T) { // the cases above fail for their own reason
		reg.answer(child(nil))
		defer reg.intercept(nil)
		if id := pull(t, s, ref); !strings.Contains(m.body, id) {
			t.Errorf("pulled %s", id)
		}
	})
}

func layerEntry(t *testing.T, img v1.Image) string {
	t.Helper()
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(m.Layers[0])
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func mapsOf(a, b map[string]document) map[string]document {
	for k, v := range b {
		a[k] = v
	}
	return a
}

// testPullRemoveRace pulls, mounts and removes images that share layers while
// others do.
func testPullRemoveRace(t *testing.T) {
	reg := newRegistry(t)
	base, implied := gzipLayer(t, dir("d/", 0o700), file("d/base", "base")), gzipLayer(t, file("d/x/implied", "implied"))
	var refs []string
	for i := range 4 {
		refs = append(refs, reg.push(t, fmt.Sprint("app", i), "latest", imageOf(t, base, implied, gzipLayer(t, file("own", fmt.Sprint(i))))))
	}
	s := open(t, testConfig(t))
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for round := range 15 {
				ref := refs[(worker+round)%len(refs)]
				resp, err := s.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
				if errdefs.IsAborted(err) {
					continue // removed by another before it had its name
				}
				if err != nil {
					t.Errorf("pull: %v", err)
					return
				}
				name := fmt.Sprintf("c%d-%d", worker, round)
				root, err := s.Mount(t.Context(), name, resp.ImageRef)
				if err != nil {
					if !errdefs.IsNotFound(err) {
						t.Errorf("mount: %v", err)
					}
					continue
				}
				if _, err := s.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
					t.Errorf("remove: %v", err)
				}
				for file, want := range map[string]string{"d/base": "base", "d/x/implied": "implied", "own": fmt.Sprint((worker + round) % len(refs))} {
					if body, err := os.ReadFile(filepath.Join(root, file)); err != nil || string(body) != want {
						t.Errorf("%s of %s: %q, %v", file, ref, body, err)
					}
				}
				if err := s.Unmount(t.Context(), name); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for _, ref := range refs {
		if _, err := s.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
			t.Error(err)
		}
	}
	if left := leftoversAt(t, s, farFuture); len(left) != 0 || s.used != (Usage{}) {
		t.Errorf("left: %v, %v", left, s.used)
	}
}

// testLayerTwice: overlayfs takes no directory twice.
func testLayerTwice(t *testing.T) {
	reg := newRegistry(t)
	l := gzipLayer(t, file("d/f", "x"))
	s := open(t, testConfig(t))
	id := pull(t, s, reg.push(t, "app", "latest", imageOf(t, l, gzipLayer(t, file("g", "y")), l, l)))
	root := mount(t, s, "c1", id)
	if body, err := os.ReadFile(filepath.Join(root, "d/f")); err != nil || string(body) != "x" {
		t.Errorf("%q, %v", body, err)
	}
}

// TestVerifiedIndex (CVE-2022-24778): the program is asked about the index, and
// what runs is the manifest that this index has for the platform.
func TestVerifiedIndex(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	img := imageOf(t, gzipLayer(t, file("f", "x")))
	reg.push(t, "app", "v1", img)
	index := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), mutate.IndexAddendum{Add: img})
	ref := reg.pushManifest(t, "app", "latest", index)
	d, _ := index.Digest()
	cfg := testConfig(t)
	verifier(t, &cfg, `[ "$4" = `+d.String()+` ]`)
	s := open(t, cfg)
	pull(t, s, ref)
	if err := pullError(t, s, reg.host()+"/app:v1"); !strings.HasPrefix(err.Error(), "SignatureValidationFailed") {
		t.Errorf("its manifest by itself: %v", err)
	}
}
