package archive

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantry-cri/gantry/imageservice/internal/manifest"
)

var limits = Limits{Bytes: 64 << 20, IndexDepth: 3, Manifest: manifest.Limits{Size: 1 << 20, Layers: 10}}

// tarOf writes entries; a body goes with a regular file.
func tarOf(t testing.TB, entries ...any) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for i := 0; i < len(entries); i++ {
		switch e := entries[i].(type) {
		case *tar.Header:
			if err := tw.WriteHeader(e); err != nil {
				t.Fatal(err)
			}
		case string: // name, body
			i++
			body := []byte(fmt.Sprint(entries[i]))
			if b, ok := entries[i].([]byte); ok {
				body = b
			}
			if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: e, Size: int64(len(body)), Mode: 0o600}); err != nil {
				t.Fatal(err)
			}
			if _, err := tw.Write(body); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func symlink(name, target string) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target}
}

func asJSON(t testing.TB, v any) []byte {
	t.Helper()
	body, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func blobName(body []byte) string { return blobsDir + digest.FromBytes(body).Encoded() }

func descriptor(mediaType string, body []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(body), Size: int64(len(body))}
}

// layout is an OCI layout with one image, whose parts tests change.
type layout struct {
	config, layer, manifest []byte
	index                   ocispec.Index
}

func newLayout(t testing.TB, text string) *layout {
	l := &layout{config: asJSON(t, map[string]any{"os": "linux", "text": text}), layer: tarOf(t, "file", text)}
	l.manifest = asJSON(t, map[string]any{
		"schemaVersion": 2, "config": descriptor(ocispec.MediaTypeImageConfig, l.config),
		"layers": []any{descriptor(ocispec.MediaTypeImageLayer, l.layer)},
	})
	l.index.SchemaVersion = 2
	l.index.Manifests = []ocispec.Descriptor{descriptor(ocispec.MediaTypeImageManifest, l.manifest)}
	return l
}

func (l *layout) name(annotation, name string) *layout {
	l.index.Manifests[0].Annotations = map[string]string{annotation: name}
	return l
}

func (l *layout) entries(t testing.TB) []any {
	return []any{
		&tar.Header{Typeflag: tar.TypeDir, Name: "./blobs/"}, "./" + blobName(l.layer), l.layer, blobName(l.manifest), l.manifest,
		blobName(l.config), l.config, "index.json", asJSON(t, l.index), "oci-layout", `{"imageLayoutVersion":"1.0.0"}`,
	}
}

func (l *layout) tar(t testing.TB) []byte { return tarOf(t, l.entries(t)...) }

// dockerSave is a docker-archive with one image of two equal layers.
func dockerSave(t testing.TB) []any {
	l := newLayout(t, "docker")
	hex := digest.FromBytes(l.config).Encoded()
	return []any{
		"1/layer.tar", l.layer, "1/VERSION", "1.0", symlink("2/layer.tar", "../1/layer.tar"), hex + ".json", l.config,
		"manifest.json", fmt.Sprintf(`[{"Config":"%s.json","RepoTags":["busybox:1","r.example/b:2"],"Layers":["1/layer.tar","2/layer.tar"],"LayerSources":{"x":1}}]`, hex),
		"repositories", "{}",
	}
}

func read(t testing.TB, body io.Reader, limits Limits) (*Archive, error) {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "spool"))
	if err != nil {
		t.Fatal(err)
	}
	a, err := Read(t.Context(), body, file, limits)
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	t.Cleanup(func() { _ = a.Close() })
	return a, nil
}

func mustRead(t testing.TB, body []byte) *Archive {
	t.Helper()
	a, err := read(t, bytes.NewReader(body), limits)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestLayout(t *testing.T) {
	l := newLayout(t, "x").name(annotationName, "docker.io/library/x:1")
	plain := l.tar(t)
	var gz bytes.Buffer
	zw := gzip.NewWriter(&gz)
	_, _ = zw.Write(plain)
	_ = zw.Close()
	enc, _ := zstd.NewWriter(nil)
	for form, body := range map[string][]byte{"plain": plain, "gzip": gz.Bytes(), "zstd": enc.EncodeAll(plain, nil)} {
		a := mustRead(t, body)
		if len(a.Images) != 1 {
			t.Fatalf("%s: %d images", form, len(a.Images))
		}
		img := a.Images[0]
		if !slices.Equal(img.Names, []string{"docker.io/library/x:1"}) || img.Digest != digest.FromBytes(l.manifest) || img.Top.Digest != img.Digest || !bytes.Equal(img.Body, l.manifest) {
			t.Errorf("%s: %+v", form, img)
		}
		config, err := a.Blob(t.Context(), img.Manifest.Config)
		if err != nil || !bytes.Equal(config, l.config) {
			t.Errorf("%s: config %q, %v", form, config, err)
		}
		rc := a.Open(t.Context(), img.Manifest.Layers[0])
		layer, err := io.ReadAll(rc)
		if err != nil || !bytes.Equal(layer, l.layer) || rc.Close() != nil {
			t.Errorf("%s: layer of %d bytes, %v", form, len(layer), err)
		}
	}
}

// An archive stays while a layer of it is being read, and no longer.
func TestCloseWhileOpen(t *testing.T) {
	a := mustRead(t, newLayout(t, "x").tar(t))
	rc := a.Open(t.Context(), a.Images[0].Manifest.Layers[0])
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(rc); err != nil {
		t.Error(err)
	}
	if err := rc.Close(); err != nil {
		t.Error(err)
	}
	if _, err := a.file.Stat(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the file is still open: %v", err)
	}
	if _, err := io.ReadAll(a.Open(t.Context(), a.Images[0].Manifest.Layers[0])); !errdefs.IsUnavailable(err) {
		t.Errorf("read of a closed archive: %v", err)
	}
	a.users.Store(1) // for the clean-up
}

func TestNames(t *testing.T) {
	for _, c := range []struct {
		annotations map[string]string
		want        []string
	}{
		{nil, nil},
		{map[string]string{ocispec.AnnotationRefName: "latest"}, nil},
		{map[string]string{ocispec.AnnotationRefName: "r.example/a:1"}, []string{"r.example/a:1"}},
		{map[string]string{ocispec.AnnotationRefName: "1", annotationName: "r.example/a:1"}, []string{"r.example/a:1"}},
		{map[string]string{"org.example.name": "r.example/a:1"}, nil},
	} {
		l := newLayout(t, "x")
		l.index.Manifests[0].Annotations = c.annotations
		if got := mustRead(t, l.tar(t)).Images[0].Names; !slices.Equal(got, c.want) {
			t.Errorf("%v: %q", c.annotations, got)
		}
	}
	// Two names of one image are one image.
	l := newLayout(t, "x").name(annotationName, "r.example/a:1")
	second := l.index.Manifests[0]
	second.Annotations = map[string]string{annotationName: "r.example/b:1"}
	l.index.Manifests = append(l.index.Manifests, second)
	if a := mustRead(t, l.tar(t)); len(a.Images) != 1 || len(a.Images[0].Names) != 2 {
		t.Errorf("%+v", a.Images)
	}
}

// Of several entries for one name the one of this platform counts; of an index
// in the index too.
func TestPlatforms(t *testing.T) {
	mine, other := newLayout(t, "mine"), newLayout(t, "other")
	m, o := mine.index.Manifests[0], other.index.Manifests[0]
	m.Platform = &ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	o.Platform = &ocispec.Platform{OS: "linux", Architecture: "s390x"}
	attestation := other.index.Manifests[0]
	attestation.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest"}
	m.Annotations = map[string]string{annotationName: "r.example/a:1"}
	o.Annotations = m.Annotations

	flat := *mine
	flat.index.Manifests = []ocispec.Descriptor{o, m, attestation}
	if a := mustRead(t, flat.tar(t)); len(a.Images) != 1 || a.Images[0].Digest != m.Digest {
		t.Errorf("flat: %+v", a.Images)
	}

	inner := asJSON(t, ocispec.Index{Versioned: mine.index.Versioned, Manifests: []ocispec.Descriptor{o, m, attestation}})
	nested := *mine
	nested.index.Manifests = []ocispec.Descriptor{descriptor(ocispec.MediaTypeImageIndex, inner)}
	a := mustRead(t, tarOf(t, append([]any{blobName(inner), inner}, nested.entries(t)...)...))
	if len(a.Images) != 1 || a.Images[0].Digest != m.Digest || a.Images[0].Top.Digest != digest.FromBytes(inner) {
		t.Errorf("nested: %+v", a.Images)
	}

	flat.index.Manifests = []ocispec.Descriptor{o}
	if _, err := read(t, bytes.NewReader(flat.tar(t)), limits); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "s390x") {
		t.Errorf("other platforms only: %v", err)
	}
}

func TestDockerArchive(t *testing.T) {
	a := mustRead(t, tarOf(t, dockerSave(t)...))
	if len(a.Images) != 1 {
		t.Fatalf("%d images", len(a.Images))
	}
	img := a.Images[0]
	if !slices.Equal(img.Names, []string{"busybox:1", "r.example/b:2"}) || img.Top.Digest != "" || img.Digest != digest.FromBytes(img.Body) || len(img.Manifest.Layers) != 2 || img.Manifest.Layers[0].Digest != img.Manifest.Layers[1].Digest {
		t.Errorf("%+v", img)
	}
	again := mustRead(t, tarOf(t, dockerSave(t)...))
	if again.Images[0].Digest != img.Digest {
		t.Error("the manifest that is made differs from time to time")
	}
}

// endless is a sender that never ends.
type endless struct{ sent int64 }

func (e *endless) Read(p []byte) (int, error) {
	clear(p)
	e.sent += int64(len(p))
	return len(p), nil
}

// bomb is an entry that says how large it is, with as much behind it.
func bomb(t testing.TB, name string, size int64) (io.Reader, *endless) {
	t.Helper()
	var buf bytes.Buffer
	if err := tar.NewWriter(&buf).WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size}); err != nil {
		t.Fatal(err)
	}
	rest := &endless{}
	return io.MultiReader(&buf, rest), rest
}

func TestSecurity(t *testing.T) {
	refused := func(name, want string, is func(error) bool, entries func(t *testing.T) []any) {
		t.Run(name, func(t *testing.T) {
			_, err := read(t, bytes.NewReader(tarOf(t, entries(t)...)), limits)
			if err == nil || !is(err) || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q", err, want)
			}
		})
	}
	// with puts an entry before those of a good archive.
	with := func(h any, more ...any) func(*testing.T) []any {
		return func(t *testing.T) []any { return append(append([]any{h}, more...), newLayout(t, "x").entries(t)...) }
	}
	invalid, damaged := errdefs.IsInvalidArgument, errdefs.IsDataLoss

	for _, doc := range []string{"index.json", "manifest.json", "oci-layout", "repositories"} {
		t.Run("CVE-2023-25153-"+doc, func(t *testing.T) {
			r, sent := bomb(t, doc, 10<<30)
			_, err := read(t, r, Limits{Bytes: 1 << 40, Manifest: limits.Manifest})
			if !invalid(err) || !strings.Contains(err.Error(), doc) || sent.sent > 1<<20 {
				t.Errorf("after %d bytes: %v", sent.sent, err)
			}
		})
	}
	t.Run("CVE-2023-25153-config", func(t *testing.T) {
		big := bytes.Repeat([]byte(" "), 2<<20)
		_, err := read(t, bytes.NewReader(tarOf(t, "c.json", big, "l", "x", "manifest.json", `[{"Config":"c.json","Layers":["l"]}]`)), limits)
		if !invalid(err) || !strings.Contains(err.Error(), "size") {
			t.Error(err)
		}
	})
	t.Run("2.1-endless-archive", func(t *testing.T) {
		r, sent := bomb(t, "layer", 1<<40)
		_, err := read(t, r, Limits{Bytes: 1 << 20, Manifest: limits.Manifest})
		if !errdefs.IsResourceExhausted(err) || sent.sent > 4<<20 {
			t.Errorf("after %d bytes: %v", sent.sent, err)
		}
	})
	t.Run("2.1-endless-padding", func(t *testing.T) {
		_, err := read(t, io.MultiReader(bytes.NewReader(newLayout(t, "x").tar(t)), &endless{}), Limits{Bytes: 1 << 20, Manifest: limits.Manifest})
		if !errdefs.IsResourceExhausted(err) {
			t.Error(err)
		}
	})
	t.Run("2.1-gzip-bomb", func(t *testing.T) {
		var gz bytes.Buffer
		zw := gzip.NewWriter(&gz)
		r, _ := bomb(t, "layer", 1<<40)
		_, _ = io.CopyN(zw, r, 8<<20)
		_ = zw.Close()
		if _, err := read(t, &gz, Limits{Bytes: 1 << 20, Manifest: limits.Manifest}); !errdefs.IsResourceExhausted(err) {
			t.Error(err)
		}
	})
	t.Run("2.1-many-entries", func(t *testing.T) {
		var buf bytes.Buffer
		tw := tar.NewWriter(&buf)
		for range maxEntries + 1 {
			if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "d/"}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := read(t, &buf, limits); !invalid(err) || !strings.Contains(err.Error(), "entries") {
			t.Error(err)
		}
	})
	refused("2.1-long-name", "512", invalid, with(strings.Repeat("n", 600), "x"))
	refused("2.1-parent-name", "plain relative path", invalid, with("blobs/../../etc/passwd", "x"))
	refused("2.1-absolute-name", "plain relative path", invalid, with("/etc/passwd", "x"))
	refused("2.1-duplicate-name", "twice", invalid, with("index.json", `{}`))
	refused("CVE-2026-53489-symlink", "symbolic link", invalid, with(symlink("index.json", "/etc/passwd")))
	refused("CVE-2026-53489-symlink-to-host", "symbolic link", invalid, with(symlink("1/layer.tar", "/var/lib/x/layer.tar")))
	refused("CVE-2026-53489-symlink-out", "symbolic link", invalid, with(symlink("1/layer.tar", "../../layer.tar")))
	refused("CVE-2026-53489-symlink-to-document", "symbolic link", invalid, with(symlink("1/layer.tar", "../index.json")))
	refused("CVE-2026-53489-hardlink", "type '1'", invalid, with(&tar.Header{Typeflag: tar.TypeLink, Name: "index.json", Linkname: "x"}))
	refused("CVE-2026-53489-device", "type '3'", invalid, with(&tar.Header{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3}))
	refused("CVE-2026-53489-fifo", "type '6'", invalid, with(&tar.Header{Typeflag: tar.TypeFifo, Name: "fifo"}))
	refused("CVE-2026-53489-symlink-chain", "not in the archive", invalid, func(t *testing.T) []any {
		return append(dockerSave(t)[:4:4], append([]any{symlink("3/layer.tar", "../1/layer.tar"), symlink("2/layer.tar", "../3/layer.tar")}, dockerSave(t)[5:]...)...)
	})
	refused("CVE-2024-3727-blob-name", "digest", damaged, with(blobsDir+strings.Repeat("0", 64), "x"))
	refused("CVE-2024-3727-config-name", "digest", damaged, func(t *testing.T) []any {
		hex := strings.Repeat("0", 64)
		return []any{hex + ".json", "{}", "l", "x", "manifest.json", `[{"Config":"` + hex + `.json","Layers":["l"]}]`}
	})
	refused("CVE-2024-3727-digest", "sha256", invalid, func(t *testing.T) []any {
		l := newLayout(t, "x")
		l.index.Manifests[0].Digest = "sha256:../../etc/passwd"
		return l.entries(t)
	})
	refused("2.2-missing-blob", "not in the archive", invalid, func(t *testing.T) []any {
		e := newLayout(t, "x").entries(t)
		return append(e[:1:1], e[3:]...)
	})
	refused("2.2-wrong-size", "instead of", damaged, func(t *testing.T) []any {
		l := newLayout(t, "x")
		l.index.Manifests[0].Size++
		return l.entries(t)
	})
	refused("2.2-index-loop", "in one another", invalid, func(t *testing.T) []any {
		l := newLayout(t, "x")
		e := []any{}
		top := l.index.Manifests[0]
		for range limits.IndexDepth + 1 {
			body := asJSON(t, ocispec.Index{Versioned: l.index.Versioned, Manifests: []ocispec.Descriptor{top}})
			top = descriptor(ocispec.MediaTypeImageIndex, body)
			e = append(e, blobName(body), body)
		}
		l.index.Manifests[0] = top
		return append(e, l.entries(t)...)
	})
	refused("2.2-too-many-layers", "layers", invalid, func(t *testing.T) []any {
		return []any{"c", "{}", "l", "x", "manifest.json", `[{"Config":"c","Layers":["l"` + strings.Repeat(`,"l"`, 10) + `]}]`}
	})
	refused("2.2-duplicate-keys", "twice", invalid, func(t *testing.T) []any {
		return []any{"c", "{}", "l", "x", "manifest.json", `[{"Config":"c","config":"c","Layers":["l"]}]`}
	})
	refused("2.2-second-document", "follows", invalid, func(t *testing.T) []any {
		return []any{"c", "{}", "l", "x", "manifest.json", `[{"Config":"c","Layers":["l"]}][]`}
	})
	refused("2.2-layout-version", "version", invalid, func(t *testing.T) []any {
		e := newLayout(t, "x").entries(t)
		return append(e[:len(e)-1:len(e)-1], `{"imageLayoutVersion":"9.0.0"}`)
	})
	refused("2.2-nothing", "neither", invalid, func(*testing.T) []any { return []any{"readme", "x"} })
	refused("2.2-no-image", "no image", invalid, func(*testing.T) []any { return []any{"manifest.json", "[]"} })
	refused("CVE-2026-50195-names-elsewhere", "neither", invalid, func(*testing.T) []any {
		return []any{"repositories", `{"registry.k8s.io/pause":{"3.9":"x"}}`}
	})
}

// An archive that ends early, at any place, is refused; so is one whose sender
// gives up, with the sender's error.
func TestCut(t *testing.T) {
	entries := dockerSave(t)
	body := tarOf(t, entries[:len(entries)-2]...)
	for n := 0; n < len(body)-1024; n += 512 { // the end mark is two blocks of zeros
		if _, err := read(t, bytes.NewReader(body[:n]), limits); err == nil {
			t.Errorf("an archive of %d of %d bytes is taken", n, len(body))
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("client is gone")
	cancel(gone)
	if _, err := Read(ctx, bytes.NewReader(body), nil, limits); !errors.Is(err, gone) || errdefs.IsDataLoss(err) {
		t.Error(err)
	}
}
