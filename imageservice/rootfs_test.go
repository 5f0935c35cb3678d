package imageservice

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/imageservice/internal/overlay"
)

func mounted(t testing.TB, path string) bool {
	t.Helper()
	m, err := mountpoints(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	return m[filepath.Base(path)]
}

func mount(t testing.TB, s *Service, container, image string) string {
	t.Helper()
	root, err := s.Mount(t.Context(), container, image)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func remove(t testing.TB, s *Service, ref string) {
	t.Helper()
	_, err := s.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		t.Fatal(err)
	}
}

// TestLayersSeenThroughTheMount: what the layers say together.
func TestLayersSeenThroughTheMount(t *testing.T) {
	needRoot(t)
	owned := func(name string, mode int64, uid int) entry {
		e := dir(name, mode)
		e.Uid = uid
		return e
	}
	again := gzipLayer(t, dir("again/", 0o755), file("again/x", "1"))
	opaqueRoot := entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: ".wh..wh..opq"}}
	for _, c := range []struct {
		name   string
		layers []v1.Layer
		want   map[string]string // path → content; "" absent, "/" a directory
		stat   map[string][2]uint32
	}{
		{
			name: "whiteouts and opaque directories",
			layers: []v1.Layer{
				gzipLayer(t, dir("d/", 0o755), file("d/keep", "k"), file("d/gone", "g"), dir("o/", 0o755), file("o/old", "o"), dir("r/", 0o755), file("r/old", "r")),
				gzipLayer(t, dir("d/", 0o755), file("d/.wh.gone", ""), dir("o/", 0o700), file("o/.wh..wh..opq", ""), file("o/new", "n"), file(".wh.r", ""), dir("r/", 0o755)),
			},
			want: map[string]string{"d/keep": "k", "d/gone": "", "o/old": "", "o/new": "n", "r": "/", "r/old": ""},
			stat: map[string][2]uint32{"o": {0o700, 0}},
		},
		{
			name: "hard link to a file of a lower layer",
			layers: []v1.Layer{
				gzipLayer(t, dir("bin/", 0o755), file("bin/tool", "binary")),
				gzipLayer(t, link("bin/alias", "bin/tool")),
			},
			want: map[string]string{"bin/alias": "binary", "bin/tool": "binary"},
		},
		{
			name: "implied directory keeps mode and owner",
			layers: []v1.Layer{
				gzipLayer(t, owned("etc/", 0o750, 7), owned("etc/d/", 0o700, 8)),
				gzipLayer(t, file("etc/d/f", "x")),
				gzipLayer(t, file("etc/d/g", "y")),
			},
			want: map[string]string{"etc/d/f": "x", "etc/d/g": "y"},
			stat: map[string][2]uint32{"etc": {0o750, 7}, "etc/d": {0o700, 8}},
		},
		{
			name: "implied directory that is a link below",
			layers: []v1.Layer{
				gzipLayer(t, dir("usr/", 0o755), dir("usr/lib/", 0o755), file("usr/lib/libc", "c"), symlink("lib", "usr/lib")),
				gzipLayer(t, file("lib/libm", "m")),
			},
			want: map[string]string{"lib/libc": "c", "lib/libm": "m", "usr/lib/libm": "m"},
		},
		{
			name:   "mode and owner of the root",
			layers: []v1.Layer{gzipLayer(t, owned("./", 0o711, 5)), gzipLayer(t, file("f", "x"))},
			want:   map[string]string{"f": "x"},
			stat:   map[string][2]uint32{".": {0o711, 5}},
		},
		{
			name:   "opaque root",
			layers: []v1.Layer{gzipLayer(t, file("old", "o")), gzipLayer(t, opaqueRoot, file("new", "n"))},
			want:   map[string]string{"old": "", "new": "n"},
		},
		{
			name:   "a layer that stands twice",
			layers: []v1.Layer{again, gzipLayer(t, file(".wh.again", "")), again},
			want:   map[string]string{"again/x": "1"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			reg := newRegistry(t)
			s := open(t, testConfig(t))
			root := mount(t, s, "c1", pull(t, s, reg.push(t, "app", "latest", imageOf(t, c.layers...))))
			for path, want := range c.want {
				info, err := os.Stat(filepath.Join(root, path))
				switch {
				case want == "":
					if err == nil {
						t.Errorf("%s is there", path)
					}
					continue
				case err != nil:
					t.Error(err)
					continue
				case want == "/":
					if !info.IsDir() {
						t.Errorf("%s is %v", path, info.Mode())
					}
					continue
				}
				if body, err := os.ReadFile(filepath.Join(root, path)); err != nil || string(body) != want {
					t.Errorf("%s: %q, %v", path, body, err)
				}
			}
			for path, want := range c.stat {
				var st unix.Stat_t
				if err := unix.Stat(filepath.Join(root, path), &st); err != nil || st.Mode&0o7777 != want[0] || st.Uid != want[1] {
					t.Errorf("%s: mode %o, owner %d, %v", path, st.Mode&0o7777, st.Uid, err)
				}
			}
		})
	}
}

// TestDependentLayersAreNotShared: one diffID, two chains, two results.
func TestDependentLayersAreNotShared(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	s := open(t, testConfig(t))
	implied := gzipLayer(t, file("etc/f", "x"))
	for i, mode := range []int64{0o700, 0o711, 0o750} {
		name := string(rune('a' + i))
		ref := reg.push(t, name, "latest", imageOf(t, gzipLayer(t, dir("etc/", mode)), implied))
		root := mount(t, s, "c"+name, pull(t, s, ref))
		if info, err := os.Stat(filepath.Join(root, "etc")); err != nil || info.Mode().Perm() != os.FileMode(mode) {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
}

func TestMountIsIdempotentAndWritable(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	s := open(t, testConfig(t))
	id := pull(t, s, reg.push(t, "app", "latest", imageOf(t, gzipLayer(t, file("f", "image")))))
	one, two := mount(t, s, "c1", id), mount(t, s, "c2", id)
	if err := os.WriteFile(filepath.Join(one, "f"), []byte("written"), 0o644); err != nil {
		t.Fatal(err)
	}
	if again := mount(t, s, "c1", id); again != one {
		t.Errorf("second mount at %s", again)
	}
	if body, _ := os.ReadFile(filepath.Join(one, "f")); string(body) != "written" {
		t.Errorf("after the second mount: %q", body)
	}
	if body, _ := os.ReadFile(filepath.Join(two, "f")); string(body) != "image" {
		t.Errorf("another container sees %q", body)
	}
	for range 2 {
		if err := s.Unmount(t.Context(), "c1"); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(one); !os.IsNotExist(err) {
		t.Errorf("mount point: %v", err)
	}
	if left := leftovers(t, s); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
	for _, id := range []string{"", "..", "a/b", "x\n"} {
		if _, err := s.Mount(t.Context(), id, "x"); err == nil {
			t.Errorf("container id %q accepted", id)
		}
	}
	if _, err := s.Mount(t.Context(), "c3", "sha256:none"); err == nil {
		t.Error("unknown image mounted")
	}
}

func TestRemovalWhileMounted(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	cfg := testConfig(t)
	s := open(t, cfg)
	ref := reg.push(t, "app", "latest", imageOf(t, gzipLayer(t, file("f", "image"))))
	id := pull(t, s, ref)
	root := mount(t, s, "c1", id)
	remove(t, s, ref)
	remove(t, s, ref) // absent is fine
	if status(t, s, id) != nil || status(t, s, ref) != nil {
		t.Error("still there")
	}
	check := func(s *Service) {
		t.Helper()
		if left := leftovers(t, s); len(left) != 1 {
			t.Errorf("layers: %v", left)
		}
		if body, err := os.ReadFile(filepath.Join(root, "f")); err != nil || string(body) != "image" {
			t.Errorf("%q, %v", body, err)
		}
	}
	check(s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, cfg) // the layer is kept over a restart
	check(s)
	if err := s.Unmount(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	if left := leftovers(t, s); len(left) != 0 {
		t.Errorf("left after the last container: %v", left)
	}
	if info, err := s.ImageFsInfo(t.Context(), nil); err != nil || info.ImageFilesystems[0].UsedBytes.Value != 0 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestRetain(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	cfg := testConfig(t)
	s := open(t, cfg)
	id := pull(t, s, reg.push(t, "app", "latest", imageOf(t, gzipLayer(t, file("f", "image")))))
	keep, drop := mount(t, s, "keep", id), mount(t, s, "drop", id)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, cfg)
	if err := s.Retain(t.Context(), []string{"keep", "unknown"}); err != nil {
		t.Fatal(err)
	}
	if !mounted(t, keep) || mounted(t, drop) {
		t.Errorf("mounted: %v, %v", mounted(t, keep), mounted(t, drop))
	}
	if again := mount(t, s, "keep", id); again != keep {
		t.Errorf("mounted again at %s", again)
	}
}

// TestManyLayers: as many as the kernel takes, the uppermost deciding.
func TestManyLayers(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	s := open(t, testConfig(t))
	mount(t, s, "small", pull(t, s, reg.push(t, "small", "latest", imageOf(t, gzipLayer(t, file("f", "x"))))))
	var layers []v1.Layer
	for i := range overlay.MaxLayers {
		layers = append(layers, plainLayer(t, file(fmt.Sprint("n", i), "x"), file("last", fmt.Sprint(i))))
	}
	for _, n := range []int{200, overlay.MaxLayers - 1, overlay.MaxLayers} {
		img := imageOf(t, layers[:n]...)
		config, err := img.RawConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		name, _, err := v1.SHA256(bytes.NewReader(config))
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range layers[:n] { // not by push, whose time grows with the square of their number
			reg.pushLayer(t, "app", l)
		}
		reg.pushBlob(t, "app", name, config)
		id := pull(t, s, reg.pushManifest(t, "app", "latest", img))
		for what, make := range map[string]struct {
			fits  bool
			mount func() (string, error)
		}{
			"root":   {n <= overlay.MaxLayers, func() (string, error) { return s.Mount(t.Context(), "many", id) }},
			"volume": {n < overlay.MaxLayers, func() (string, error) { return s.MountVolume(t.Context(), "small", id) }},
		} {
			root, err := make.mount()
			if !make.fits && errdefs.IsFailedPrecondition(err) && strings.Contains(err.Error(), "the kernel takes") {
				continue
			}
			if !make.fits || err != nil {
				t.Errorf("%s of %d layers: %v", what, n, err)
				continue
			}
			if names, err := os.ReadDir(root); err != nil || len(names) != n+1 {
				t.Errorf("%s of %d layers: %d files, %v", what, n, len(names), err)
			}
			wantFile(t, filepath.Join(root, "last"), fmt.Sprint(n-1))
		}
		if err := s.Unmount(t.Context(), "many"); err != nil {
			t.Error(err)
		}
		remove(t, s, id)
	}
	if err := s.Retain(t.Context(), nil); err != nil {
		t.Error(err)
	}
	if left := leftovers(t, s); len(left) != 1 {
		t.Errorf("%d things left", len(left))
	}
}
