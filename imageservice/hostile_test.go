package imageservice

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/imageservice/internal/meta"
)

// pulled is a service with an image of one layer, which has a file f with "1" in it.
func pulled(t *testing.T) (s *Service, cfg Config, ref string) {
	t.Helper()
	needRoot(t)
	reg := newRegistry(t)
	cfg = testConfig(t)
	s = open(t, cfg)
	ref = reg.push(t, "app", "latest", imageOf(t, gzipLayer(t, file("f", "1"))))
	pull(t, s, ref)
	return s, cfg, ref
}

// Records that read well and lead out of the layers' directory, or say what no layer has, are dropped, and what they
// name stays.
func TestHostileLayerRecords(t *testing.T) {
	s, cfg, ref := pulled(t)
	huge := strings.Repeat("a", 64)
	victims := []string{filepath.Join(cfg.Root, "fs"), s.path("fs"), s.path(layersDir, huge, "fs")}
	mkdirs(t, victims...)
	before := status(t, s, ref)
	change := meta.Change{PutLayers: []meta.Layer{{Key: ".."}, {Key: "."}, {Key: "../.."}, {Key: huge, Bytes: math.MaxUint64}}}
	if err := s.meta.Update(change); err != nil {
		t.Fatal(err)
	}
	for range 2 { // what is dropped at the first start is not there at the second
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, cfg)
		for _, dir := range victims[:2] {
			if _, err := os.Stat(dir); err != nil {
				t.Error(err)
			}
		}
		s.mu.RLock()
		if len(s.layers) != 1 {
			t.Errorf("%d layers, want 1", len(s.layers))
		}
		s.mu.RUnlock()
		if now := status(t, s, ref); now.GetSize() != before.GetSize() {
			t.Errorf("image %v, was %v", now, before)
		}
	}
}

// A container whose list of layers cannot be read keeps all that there are, until it is removed.
func TestUnreadableLayersOfAContainer(t *testing.T) {
	s, cfg, ref := pulled(t)
	root := mount(t, s, "runs", ref)
	list := s.path(containersDir, "runs", "layers")
	if err := os.Remove(list); err != nil {
		t.Fatal(err)
	}
	mkdirs(t, list) // EISDIR: an error that does not say that there is none
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, cfg)
	remove(t, s, ref)
	if left := leftovers(t, s); len(left) != 1 {
		t.Errorf("left under the container: %v", left)
	}
	if got, err := os.ReadFile(filepath.Join(root, "f")); err != nil || string(got) != "1" {
		t.Errorf("in the container: %q, %v", got, err)
	}
	if err := s.Unmount(t.Context(), "runs"); err != nil {
		t.Error(err)
	}
	if left := leftovers(t, s); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}
