package archive

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantry-cri/gantry/imageservice/internal/manifest"
)

var update = flag.Bool("update", false, "write the seeds of FuzzArchive anew")

// TestSeeds keeps the committed seeds what this package's archives are.
func TestSeeds(t *testing.T) {
	nested := newLayout(t, "nested").name(annotationName, "r.example/a:1")
	inner := asJSON(t, ocispec.Index{Versioned: nested.index.Versioned, Manifests: nested.index.Manifests})
	nested.index.Manifests = []ocispec.Descriptor{descriptor(ocispec.MediaTypeImageIndex, inner)}
	for name, body := range map[string][]byte{
		"layout": newLayout(t, "x").name(ocispec.AnnotationRefName, "r.example/a:1").tar(t),
		"docker": tarOf(t, dockerSave(t)...),
		"index":  tarOf(t, append([]any{blobName(inner), inner}, nested.entries(t)...)...),
	} {
		path := filepath.Join("testdata/fuzz/FuzzArchive", name)
		want := fmt.Sprintf("go test fuzz v1\n[]byte(%s)\n", strconv.Quote(string(body)))
		if *update {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s is not what -update writes (%v)", path, err)
		}
	}
}

// FuzzArchive: whatever comes is refused in bounds, or is images whose parts
// are all there with the digests that they are called by.
func FuzzArchive(f *testing.F) {
	small := Limits{Bytes: 1 << 20, IndexDepth: 3, Manifest: manifest.Limits{Size: 64 << 10, Layers: 10}}
	f.Fuzz(func(t *testing.T, body []byte) {
		file, err := os.CreateTemp(t.TempDir(), "spool")
		if err != nil {
			t.Fatal(err)
		}
		a, err := Read(t.Context(), bytes.NewReader(body), file, small)
		info, serr := file.Stat()
		if serr != nil || info.Size() > small.Bytes {
			t.Fatalf("%d bytes are kept, %v", info.Size(), serr)
		}
		if err != nil {
			_ = file.Close()
			return
		}
		defer a.Close()
		if len(a.Images) == 0 {
			t.Fatal("neither images nor an error")
		}
		for _, img := range a.Images {
			if digest.FromBytes(img.Body) != img.Digest {
				t.Errorf("manifest %s is another", img.Digest)
			}
			for _, desc := range append([]ocispec.Descriptor{img.Manifest.Config}, img.Manifest.Layers...) {
				rc := a.Open(t.Context(), desc)
				blob, err := io.ReadAll(rc)
				if err != nil || rc.Close() != nil || int64(len(blob)) != desc.Size || digest.FromBytes(blob) != desc.Digest {
					t.Errorf("blob %s of %d bytes: %d bytes, %v", desc.Digest, desc.Size, len(blob), err)
				}
			}
		}
	})
}
