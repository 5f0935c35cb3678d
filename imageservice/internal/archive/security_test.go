package archive

import (
	"archive/tar"
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

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
