package imageservice

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

// startPreload opens a Service and waits until it has preloaded. Close waits
// for that too, but would cut it short.
func startPreload(t *testing.T, cfg Config) *Service {
	t.Helper()
	s := open(t, cfg)
	path := s.path(preloadFile)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Lstat(path); err == nil {
			return s
		}
		if time.Now().After(deadline) {
			t.Fatal("nothing is preloaded")
		}
	}
}

func TestPreload(t *testing.T) {
	needRoot(t)
	cfg := testConfig(t)
	cfg.PreloadDir = t.TempDir()
	put := func(name string, body []byte) {
		if err := os.WriteFile(filepath.Join(cfg.PreloadDir, name), body, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	archive := func(ref, content string) []byte {
		return dockerArchive(t, map[string]v1.Image{ref: imageOf(t, gzipLayer(t, file("f", content)))})
	}
	put("1.tar", archive("r.example/x:1", "one"))
	put("2-broken.tar", []byte("not an archive"))
	put("3.tar", archive("r.example/x:1", "three")) // the later name wins
	put("4.txt", archive("r.example/y:1", "text"))
	if err := unix.Mkfifo(filepath.Join(cfg.PreloadDir, "5.tar"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := startPreload(t, cfg)
	img := status(t, s, "r.example/x:1")
	if img == nil || len(s.list(nil)) != 2 || status(t, s, "r.example/y:1") != nil {
		t.Fatalf("%v of %v", img, s.list(nil))
	}
	first := s.readPreloaded()
	if got := slices.Sorted(maps.Keys(first)); !slices.Equal(got, []string{"1.tar", "3.tar"}) || !slices.Equal(first["3.tar"].Images, []string{img.Id}) {
		t.Errorf("remembered: %v", first)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	// Unchanged files are not looked into again: what is in them now would be seen.
	content := archive("r.example/z:1", "z")
	old, err := os.Stat(filepath.Join(cfg.PreloadDir, "3.tar"))
	if err != nil || old.Size() < int64(len(content)) {
		t.Fatal(err, old.Size(), len(content))
	}
	put("3.tar", append(content, make([]byte, old.Size()-int64(len(content)))...))
	if err := os.Chtimes(filepath.Join(cfg.PreloadDir, "3.tar"), old.ModTime(), old.ModTime()); err != nil {
		t.Fatal(err)
	}
	s = startPreload(t, cfg)
	s.preload()
	if status(t, s, "r.example/z:1") != nil {
		t.Error("an archive that was loaded before is loaded again")
	}
	remove(t, s, img.Id)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	// But they are when an image of theirs is gone, or they have changed.
	s = startPreload(t, cfg)
	s.preload()
	if status(t, s, "r.example/z:1") == nil {
		t.Error("an image that was removed is not loaded again")
	}
	if err := os.WriteFile(s.path(preloadFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.preload()
	if got := s.readPreloaded(); len(got) != 2 {
		t.Errorf("after the record was damaged: %v", got)
	}
}
