package imageservice

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/imageservice/internal/meta"
	"github.com/gantry-cri/gantry/imageservice/internal/overlay"
)

func mkdirs(t *testing.T, dirs ...string) {
	t.Helper()
	for _, d := range dirs {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRestart(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	cfg := testConfig(t)
	s := open(t, cfg)
	ref := reg.push(t, "app", "latest", imageOf(t, gzipLayer(t, file("f", "1")), gzipLayer(t, file("etc/implied", "2"))))
	id := pull(t, s, ref)
	before := status(t, s, id)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, cfg)
	after := status(t, s, ref)
	if after.String() != before.String() {
		t.Errorf("before %v\nafter  %v", before, after)
	}
	if root := mount(t, s, "c1", id); !mounted(t, root) {
		t.Error("not mounted")
	}
}

// TestOpenRepairs begins from every kind of leftover that a kill can leave.
func TestOpenRepairs(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	cfg := testConfig(t)
	s := open(t, cfg)
	whole := pull(t, s, reg.push(t, "whole", "latest", imageOf(t, gzipLayer(t, file("f", "1")))))
	broken := reg.push(t, "broken", "latest", imageOf(t, gzipLayer(t, file("g", "2"))))
	brokenID := pull(t, s, broken)
	s.mu.RLock()
	lost := s.images[brokenID].layers[0].Key
	s.mu.RUnlock()
	unused := meta.Layer{Key: strings.Repeat("e", 64), Bytes: 5}
	if err := s.meta.Update(meta.Change{PutLayers: []meta.Layer{unused}}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// A pull under way, a removal under way, a layer stored but not recorded,
	// a recorded layer whose directory is lost, and one without an image.
	mkdirs(t, s.path(tmpDir, "1", "fs", "x"), s.path(trashDir, "2", "y"), s.path(layersDir, strings.Repeat("f", 64), "fs"),
		s.path(layersDir, unused.Key, "fs"), s.path(containersDir, "dead", "upper"), filepath.Join(cfg.RunDir, "dead"))
	if err := os.RemoveAll(s.path(layersDir, lost)); err != nil {
		t.Fatal(err)
	}

	s = open(t, cfg)
	if status(t, s, whole) == nil || status(t, s, brokenID) != nil || status(t, s, broken) != nil {
		t.Error("the wrong images are left")
	}
	if left := leftovers(t, s); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
	if err := s.Retain(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{s.path(containersDir), cfg.RunDir} {
		if names, _ := os.ReadDir(d); len(names) != 0 {
			t.Errorf("left in %s: %v", d, names)
		}
	}
	pull(t, s, broken)
}

// TestStaleContainer: after a reboot the writable layer is there, the mount
// is not.
func TestStaleContainer(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	cfg := testConfig(t)
	s := open(t, cfg)
	id := pull(t, s, reg.push(t, "app", "latest", imageOf(t, gzipLayer(t, file("f", "1")))))
	root := mount(t, s, "c1", id)
	if err := os.WriteFile(filepath.Join(root, "old"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("umount", root).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	s = open(t, cfg)
	root = mount(t, s, "c1", id)
	if _, err := os.Stat(filepath.Join(root, "old")); !os.IsNotExist(err) {
		t.Errorf("the old boot's file: %v", err)
	}
}

// Containers of a Gantry that mounted roots at RunDir/<id> itself are removed whole, what is in them untouched.
func TestOldMounts(t *testing.T) {
	needRoot(t)
	cfg := testConfig(t)
	var roots []string
	for _, id := range []string{"removed", "unknown"} {
		for _, name := range []string{id, id + "+volume"} {
			root := filepath.Join(cfg.RunDir, name)
			mkdirs(t, root, filepath.Join(cfg.Root, containersDir, id))
			if err := unix.Mount("old", root, "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = overlay.Unmount(root) })
			mkdirs(t, filepath.Join(root, "proc"))
			roots = append(roots, root)
		}
	}
	held, err := os.Open(roots[0]) // as its process does
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	s := open(t, cfg)
	if err := s.Unmount(t.Context(), "removed"); err != nil {
		t.Error(err)
	}
	if _, err := held.Readdirnames(1); err != nil {
		t.Errorf("files of the root are gone: %v", err)
	}
	if err := s.Retain(t.Context(), nil); err != nil {
		t.Error(err)
	}
	for _, root := range roots {
		if _, err := os.Lstat(root); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", root, err)
		}
	}
}

func TestDamagedMetadata(t *testing.T) {
	s, cfg, ref := pulled(t)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(s.path("meta.db"))
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(b []byte) []byte{
		"empty":     func([]byte) []byte { return nil },
		"text":      func([]byte) []byte { return []byte(strings.Repeat("not a database ", 1000)) },
		"cut":       func(b []byte) []byte { return b[:len(b)/2] },
		"no metas":  func(b []byte) []byte { clear(b[:2*os.Getpagesize()]); return b },
		"no pages":  func(b []byte) []byte { clear(b[2*os.Getpagesize():]); return b },
		"all bits":  func(b []byte) []byte { fill(b[2*os.Getpagesize():], 0xff); return b },
		"directory": nil,
	} {
		t.Run(name, func(t *testing.T) {
			file := s.path("meta.db")
			if err := os.RemoveAll(file); err != nil {
				t.Fatal(err)
			}
			if spoil == nil {
				mkdirs(t, file)
			} else if err := os.WriteFile(file, spoil(append([]byte(nil), good...)), 0o600); err != nil {
				t.Fatal(err)
			}
			s := open(t, cfg)
			pull(t, s, ref)
			if left := leftovers(t, s); len(left) != 1 {
				t.Errorf("left: %v", left)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			aside, err := filepath.Glob(file + ".damaged-*")
			if name != "empty" && (err != nil || len(aside) != 1) {
				t.Errorf("set aside: %v, %v", aside, err)
			}
			for _, a := range aside {
				if err := os.RemoveAll(a); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// Containers keep the layers that they are made of when the records of them are lost, and the image can be pulled again.
func TestLostMetadataUnderContainers(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	cfg := testConfig(t)
	s := open(t, cfg)
	ref := reg.push(t, "app", "latest", imageOf(t, gzipLayer(t, file("f", "1")), gzipLayer(t, file("g", "2"))))
	pull(t, s, ref)
	root := mount(t, s, "runs", ref)
	read := func(when string) {
		t.Helper()
		for name, want := range map[string]string{"f": "1", "g": "2"} {
			if got, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(got) != want {
				t.Errorf("%s: %s is %q, %v", when, name, got, err)
			}
		}
	}
	again := func() {
		t.Helper()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, cfg)
	}
	if err := os.WriteFile(s.path("meta.db"), []byte("spoilt"), 0o600); err != nil {
		t.Fatal(err)
	}
	again()
	read("without records")
	pull(t, s, ref)
	read("pulled again")
	again()
	read("opened once more")
	if err := s.Unmount(t.Context(), "runs"); err != nil {
		t.Error(err)
	}
	again()
	if left := leftovers(t, s); len(left) != 2 {
		t.Errorf("left: %v", left)
	}
}

func fill(b []byte, c byte) {
	for i := range b {
		b[i] = c
	}
}

func TestOneServiceForEachRoot(t *testing.T) {
	cfg := testConfig(t)
	open(t, cfg)
	if s, err := Open(t.Context(), cfg); err == nil {
		s.Close()
		t.Error("opened twice")
	}
}
