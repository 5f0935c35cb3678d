package imageservice

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// known is what is in memory of a container's usage, without asking for it.
func known(s *Service, id string) Usage {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if c := s.containers[id]; c != nil {
		return c.usage
	}
	return Usage{}
}

func write(t testing.TB, path string, size int) {
	t.Helper()
	if err := os.WriteFile(path, []byte(strings.Repeat("x", size)), 0o644); err != nil {
		t.Fatal(err)
	}
}

func containerFS(t testing.TB, s *Service) *runtimeapi.FilesystemUsage {
	t.Helper()
	info, err := s.ImageFsInfo(t.Context(), nil)
	if err != nil || len(info.GetContainerFilesystems()) != 1 {
		t.Fatalf("%v, %v", info, err)
	}
	return info.GetContainerFilesystems()[0]
}

func TestUsage(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	cfg := testConfig(t)
	s := open(t, cfg)
	id := pull(t, s, reg.push(t, "app", "latest", imageOf(t, gzipLayer(t, file("f", "image")))))
	one, two := mount(t, s, "c1", id), mount(t, s, "c2", id)
	write(t, filepath.Join(one, "big"), 100_000)
	if u := known(s, "c1"); u.Inodes != 1 {
		t.Errorf("measured although nobody asked: %v", u)
	}
	if u, ok := s.Usage("c1"); !ok || u.Inodes != 1 {
		t.Errorf("fresh: %v, %v", u, ok)
	}
	if _, ok := s.Usage("c3"); ok {
		t.Error("usage of an unknown container")
	}
	eventually(t, func() bool { return known(s, "c1").Inodes == 2 })
	if u, ok := s.Usage("c1"); !ok || u.Bytes < 100_000 || u.At.IsZero() {
		t.Errorf("written: %v, %v", u, ok)
	}
	if u := known(s, "c2"); u.Inodes != 1 {
		t.Errorf("c2 was measured although nobody asked: %v", u)
	}

	// Who asks for the file system asks for all of them.
	write(t, filepath.Join(two, "big"), 200_000)
	containerFS(t, s)
	eventually(t, func() bool { return known(s, "c2").Inodes == 2 })
	if fs := containerFS(t, s); fs.GetUsedBytes().GetValue() < 300_000 || fs.GetInodesUsed().GetValue() != 4 {
		t.Errorf("both: %v", fs)
	}

	// A restarted daemon measures what it finds, before anybody asks.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, cfg)
	eventually(t, func() bool {
		return known(s, "c1").Inodes == 2 && known(s, "c2").Inodes == 2
	})
	if err := s.Unmount(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	if fs := containerFS(t, s); fs.GetInodesUsed().GetValue() != 2 {
		t.Errorf("after c1 has gone: %v", fs)
	}
}

// TestMeasuringIsBounded: what has been measured is left alone, the longer the
// longer that took.
func TestMeasuringIsBounded(t *testing.T) {
	for took, want := range map[time.Duration]time.Duration{
		0: measureEvery, time.Millisecond: measureEvery, time.Second: measureEvery, 5 * time.Second: 50 * time.Second, time.Minute: 10 * time.Minute,
	} {
		if got := rest(took); got != want {
			t.Errorf("after %v: %v, want %v", took, got, want)
		}
	}
	needRoot(t)
	reg := newRegistry(t)
	s := open(t, testConfig(t))
	root := mount(t, s, "c1", pull(t, s, reg.push(t, "app", "latest", imageOf(t, gzipLayer(t, file("f", "image"))))))
	s.Usage("c1")
	asked := func() bool {
		s.mu.RLock()
		defer s.mu.RUnlock()
		return s.containers["c1"].measure
	}
	eventually(t, func() bool { return !asked() })
	write(t, filepath.Join(root, "f2"), 1)
	for range 100 {
		s.Usage("c1")
	}
	if asked() {
		t.Error("is to be measured again at once")
	}
}
