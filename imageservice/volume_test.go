package imageservice

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"
)

func mountVolume(t testing.TB, s *Service, container, image string) string {
	t.Helper()
	root, err := s.MountVolume(t.Context(), container, image)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func wantFile(t testing.TB, path, want string) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("%s: %q, %v; want %q", path, got, err, want)
	}
}

// nothingMounted requires that nothing is left in the run directory.
func nothingMounted(t testing.TB, s *Service) {
	t.Helper()
	if left, err := os.ReadDir(s.cfg.RunDir); err != nil || len(left) > 0 {
		t.Errorf("left in the run directory: %v, %v", left, err)
	}
	if m, err := mountpoints(s.cfg.RunDir); err != nil || len(m) > 0 {
		t.Errorf("left mounted: %v, %v", m, err)
	}
}

func TestVolume(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	s := open(t, testConfig(t))
	app := pull(t, s, reg.push(t, "app", "latest", imageOf(t, gzipLayer(t, file("f", "app")))))
	owned := dir("./", 0o751)
	owned.Uid, owned.Gid = 5, 6
	for _, c := range []struct {
		name   string
		layers []v1.Layer
		files  map[string]string
		mode   uint32
		uid    uint32
	}{
		{"one layer", []v1.Layer{gzipLayer(t, dir("d/", 0o755), file("d/f", "one"))}, map[string]string{"d/f": "one"}, 0o755, 0},
		{"three layers", []v1.Layer{
			gzipLayer(t, owned, dir("d/", 0o755), file("d/f", "one"), file("gone", "x")),
			gzipLayer(t, file(".wh.gone", ""), file("two", "two")),
			gzipLayer(t, dir("d/", 0o755), file("d/g", "three")),
		}, map[string]string{"d/f": "one", "two": "two", "d/g": "three"}, 0o751, 5},
	} {
		t.Run(c.name, func(t *testing.T) {
			id := pull(t, s, reg.push(t, "volume", "latest", imageOf(t, c.layers...)))
			var roots []string
			for _, ctr := range []string{"c1", "c2"} {
				mount(t, s, ctr, app)
				root := mountVolume(t, s, ctr, id)
				if again := mountVolume(t, s, ctr, id); again != root {
					t.Errorf("mounted again at %s", again)
				}
				roots = append(roots, root)
				for name, want := range c.files {
					wantFile(t, filepath.Join(root, name), want)
				}
				if _, err := os.Lstat(filepath.Join(root, "gone")); err == nil {
					t.Error("a whiteout does not count")
				}
				var st unix.Stat_t
				if err := unix.Stat(root, &st); err != nil || st.Mode&0o7777 != c.mode || st.Uid != c.uid {
					t.Errorf("root: %o, %d, %v", st.Mode&0o7777, st.Uid, err)
				}
			}
			for _, ctr := range []string{"c1", "c2"} {
				for range 2 {
					if err := s.Unmount(t.Context(), ctr); err != nil {
						t.Error(err)
					}
				}
				if ctr == "c1" {
					for name, want := range c.files {
						wantFile(t, filepath.Join(roots[1], name), want)
					}
				}
			}
			nothingMounted(t, s)
		})
	}
}

// pushModel puts an OCI artifact into the registry, a file with a name.
func pushModel(t testing.TB, reg *testRegistry, name, content string) string {
	t.Helper()
	descriptor := func(body []byte, kind, more string) string {
		h, _, err := v1.SHA256(bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		reg.pushBlob(t, "model", h, body)
		return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d%s}`, kind, h, len(body), more)
	}
	manifest := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"artifactType":"application/vnd.example.model","config":%s,"layers":[%s]}`,
		types.OCIManifestSchema1, descriptor([]byte("{}"), "application/vnd.oci.empty.v1+json", ""),
		descriptor([]byte(content), "application/octet-stream", fmt.Sprintf(`,"annotations":{"org.opencontainers.image.title":%q}`, name)))
	reg.put(t, http.MethodPut, "/v2/model/manifests/1", string(types.OCIManifestSchema1), []byte(manifest))
	return reg.host() + "/model:1"
}

// TestArtifactAsVolume: it is mounted like an image, and cannot be run.
func TestArtifactAsVolume(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	cfg := testConfig(t)
	s := open(t, cfg)
	app := pull(t, s, reg.push(t, "app", "latest", imageOf(t, gzipLayer(t, file("f", "app")))))
	model := pull(t, s, pushModel(t, reg, "weights/a.bin", "weights"))
	mount(t, s, "c1", app)
	root := mountVolume(t, s, "c1", model)
	wantFile(t, filepath.Join(root, "weights/a.bin"), "weights")
	if err := os.WriteFile(filepath.Join(root, "x"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing: %v", err)
	}
	if _, err := s.Mount(t.Context(), "c2", model); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "artifact") {
		t.Errorf("as a root file system: %v", err)
	}
	remove(t, s, model)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, cfg)
	wantFile(t, filepath.Join(root, "weights/a.bin"), "weights")
	if err := s.Unmount(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	if left := leftovers(t, s); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
	nothingMounted(t, s)
}

// TestVolumeIsReadOnly also for who may mount anew, in all ways.
func TestVolumeIsReadOnly(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	s := open(t, testConfig(t))
	id := pull(t, s, reg.push(t, "app", "latest", imageOf(t, gzipLayer(t, file("f", "image")))))
	mount(t, s, "c1", id)
	root := mountVolume(t, s, "c1", id)
	_ = unix.Mount("", root, "", unix.MS_REMOUNT|unix.MS_BIND, "")
	_ = unix.Mount("", root, "", unix.MS_REMOUNT, "")
	if err := os.WriteFile(filepath.Join(root, "f"), nil, 0); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing: %v", err)
	}
	wantFile(t, filepath.Join(root, "f"), "image")
}

func TestVolumeRefused(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	s := open(t, testConfig(t))
	id := pull(t, s, reg.push(t, "app", "latest", imageOf(t, gzipLayer(t, file("f", "image")))))
	for _, ctr := range []string{"c1", "", "../x", "a+b"} {
		if _, err := s.MountVolume(t.Context(), ctr, id); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("container %q: %v", ctr, err)
		}
	}
	mount(t, s, "c1", id)
	if _, err := s.MountVolume(t.Context(), "c1", "unknown"); !errdefs.IsNotFound(err) {
		t.Errorf("unknown image: %v", err)
	}
}

// TestVolumeOutlivesItsImage, and the daemon.
func TestVolumeOutlivesItsImage(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	cfg := testConfig(t)
	s := open(t, cfg)
	app := pull(t, s, reg.push(t, "app", "latest", imageOf(t, gzipLayer(t, file("f", "app")))))
	data := pull(t, s, reg.push(t, "data", "latest", imageOf(t, gzipLayer(t, file("f", "data")), gzipLayer(t, file("g", "data")))))
	mount(t, s, "c1", app)
	root := mountVolume(t, s, "c1", data)
	remove(t, s, data)
	for range 2 {
		if left := leftovers(t, s); len(left) != 3 {
			t.Errorf("layers: %v", left)
		}
		wantFile(t, filepath.Join(root, "f"), "data")
		wantFile(t, filepath.Join(root, "g"), "data")
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, cfg)
		if err := s.Retain(t.Context(), []string{"c1"}); err != nil {
			t.Fatal(err)
		}
	}
	remove(t, s, app)
	if err := s.Retain(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if left := leftovers(t, s); len(left) != 0 {
		t.Errorf("left after the container: %v", left)
	}
	nothingMounted(t, s)
}

// TestVolumeUndone: a mount that fails leaves nothing, and the layers can go.
func TestVolumeUndone(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	s := open(t, testConfig(t))
	app := pull(t, s, reg.push(t, "app", "latest", imageOf(t, gzipLayer(t, file("f", "app")))))
	data := pull(t, s, reg.push(t, "data", "latest", imageOf(t, gzipLayer(t, file("f", "data")))))
	root := mount(t, s, "c1", app)
	target := filepath.Join(filepath.Dir(root), strings.TrimPrefix(data, "sha256:"))
	write(t, target, 1) // no directory
	if _, err := s.MountVolume(t.Context(), "c1", data); err == nil {
		t.Fatal("mounted over a file")
	}
	if _, err := os.Lstat(target); !os.IsNotExist(err) {
		t.Errorf("mount point: %v", err)
	}
	if left, _ := os.ReadDir(s.path(containersDir, "c1", volumesDir)); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	remove(t, s, data)
	if left := leftovers(t, s); len(left) != 1 {
		t.Errorf("layers: %v", left)
	}
	wantFile(t, filepath.Join(root, "f"), "app")
}

// TestVolumeAfterCrash: every state that a crash can leave is cleaned up.
func TestVolumeAfterCrash(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	cfg := testConfig(t)
	s := open(t, cfg)
	id := pull(t, s, reg.push(t, "app", "latest", imageOf(t, gzipLayer(t, file("f", "app")))))
	at := func(name string) string { return filepath.Join(cfg.RunDir, name) }
	mkdir := func(path string) {
		t.Helper()
		if err := os.MkdirAll(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	// Mounted, and then the records are lost.
	mount(t, s, "lost", id)
	mountVolume(t, s, "lost", id)
	// A record without a mount point, a mount point without a mount, and layers
	// on their way into a mapped mount.
	mount(t, s, "half", id)
	mkdir(s.path(containersDir, "half", volumesDir, "abc"))
	mkdir(at("half/def"))
	mkdir(at("half/map"))
	for range 3 {
		if err := unix.Mount("none", at("half/map"), "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
	}
	mkdir(at("only/ghi"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(s.path(containersDir, "lost")); err != nil {
		t.Fatal(err)
	}
	s = open(t, cfg)
	if err := s.Retain(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	nothingMounted(t, s)
	remove(t, s, id)
	if left := leftovers(t, s); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestVolumesAtOnce(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	s := open(t, testConfig(t))
	var ids []string
	for i := range 4 {
		ids = append(ids, pull(t, s, reg.push(t, fmt.Sprint("v", i), "latest", imageOf(t, gzipLayer(t, file("f", fmt.Sprint(i)))))))
	}
	var wg sync.WaitGroup
	for n := range 8 {
		ctr := fmt.Sprint("c", n)
		mount(t, s, ctr, ids[0])
		for i, id := range ids {
			for range 2 {
				wg.Go(func() {
					root, err := s.MountVolume(t.Context(), ctr, id)
					if err != nil {
						t.Error(err)
						return
					}
					wantFile(t, filepath.Join(root, "f"), fmt.Sprint(i))
				})
			}
		}
	}
	wg.Wait()
	for n := range 8 {
		wg.Go(func() {
			if err := s.Unmount(t.Context(), fmt.Sprint("c", n)); err != nil {
				t.Error(err)
			}
		})
	}
	for _, id := range ids {
		remove(t, s, id)
	}
	wg.Wait()
	nothingMounted(t, s)
	if left := leftovers(t, s); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
