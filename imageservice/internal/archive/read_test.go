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
	if _, err := io.ReadAll(a.Open(t.Context(), a.Images[0].Manifest.Layers[0])); !errors.Is(err, errClosed) || !errdefs.IsUnavailable(err) {
		t.Errorf("read of a closed archive: %v", err)
	}
	if _, err := a.Blob(t.Context(), a.Images[0].Manifest.Config); !errors.Is(err, errClosed) {
		t.Errorf("document of a closed archive: %v", err)
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
