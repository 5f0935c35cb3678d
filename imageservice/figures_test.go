package imageservice

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// checkFigures compares what ImageFsInfo says of images with the disk.
func checkFigures(t *testing.T, s *Service) {
	t.Helper()
	info, err := s.ImageFsInfo(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	root, err := os.Open(s.cfg.Root)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := syncfs(root); err != nil { // blocks are given out when files are written
		t.Fatal(err)
	}
	bytes, inodes := onDisk(t, s.path(layersDir))
	s.mu.RLock()
	for _, f := range s.parked {
		b, n := onDisk(t, f.dir)
		bytes, inodes = bytes+b+4096, inodes+n+1 // with the directory itself
	}
	s.mu.RUnlock()
	got := info.ImageFilesystems[0]
	if got.InodesUsed.GetValue() != inodes {
		t.Errorf("%d inodes, there are %d", got.InodesUsed.GetValue(), inodes)
	}
	// Directories and sparse files are the file system's own affair.
	if b := got.UsedBytes.GetValue(); b < bytes-bytes/50 || b > bytes+bytes/50 {
		t.Errorf("%d bytes, there are %d", b, bytes)
	}
}

// onDisk walks everything beneath a directory, each inode once.
func onDisk(t *testing.T, dir string) (bytes, inodes uint64) {
	t.Helper()
	seen := make(map[uint64]bool)
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		if !seen[st.Ino] {
			seen[st.Ino] = true
			bytes, inodes = bytes+uint64(st.Blocks)*512, inodes+1
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return bytes, inodes
}

func TestFiguresAfterEachStep(t *testing.T) {
	needRoot(t)
	for _, keep := range []bool{false, true} {
		reg := newRegistry(t)
		base := gzipLayer(t, dir("d/", 0o755), file("d/a", "aaaa"), link("d/b", "d/a"), symlink("d/l", "a"), file("d/empty", ""))
		a := reg.push(t, "a", "latest", imageOf(t, base, gzipLayer(t, file("d/implied/x", "x"), link("h", "d/a"))))
		b := reg.push(t, "b", "latest", imageOf(t, base, gzipLayer(t, file("b", "b"), file("d/.wh.a", ""))))
		cfg := testConfig(t)
		cfg.KeepLayerBlobs = keep
		s := open(t, cfg)
		step := func(what string, do func()) {
			do()
			leftovers(t, s) // the background has nothing left to do
			checkFigures(t, s)
			if t.Failed() {
				t.Fatalf("keep blobs %v, after %s", keep, what)
			}
		}
		remove := func(ref string) func() {
			return func() {
				if _, err := s.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
					t.Fatal(err)
				}
			}
		}
		var id string
		step("pull", func() { id = pull(t, s, a) })
		step("another", func() { pull(t, s, b) })
		step("the same again", func() { pull(t, s, a) })
		step("mount", func() { mount(t, s, "c1", id) })
		step("removal of an image in use", remove(a))
		if n := len(leftovers(t, s)); n != 3 {
			t.Errorf("%d layers, three are in use", n)
		}
		step("restart", func() {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open(t, cfg)
		})
		step("its container's end", func() {
			if err := s.Unmount(t.Context(), "c1"); err != nil {
				t.Fatal(err)
			}
		})
		if n := len(leftovers(t, s)); n != 2 {
			t.Errorf("%d layers, two are in use", n)
		}
		step("removal", remove(b))
		if s.used != (Usage{}) {
			t.Errorf("used by nothing: %v", s.used)
		}
	}
}
