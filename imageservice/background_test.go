package imageservice

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"
)

// TestRemovalWaitsForNoDeletion: what nobody needs is out of the books however
// long it takes to delete what was removed before.
func TestRemovalWaitsForNoDeletion(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	s := open(t, testConfig(t))
	ref := reg.push(t, "app", "latest", imageOf(t, gzipLayer(t, file("f", "x"))))
	pull(t, s, ref)

	// Opening a FIFO takes until somebody writes to it.
	trash := s.path(trashDir)
	if err := os.Rename(trash, s.path("aside")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(trash, 0o600); err != nil {
		t.Fatal(err)
	}
	defer func() {
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if err := os.Remove(trash); err != nil {
				t.Error(err)
			}
		})
		for fd, err := -1, error(nil); !errors.Is(err, unix.ENOENT); time.Sleep(time.Millisecond) {
			if fd, err = unix.Open(trash, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err == nil {
				unix.Close(fd)
			}
		}
		wg.Wait()
	}()
	wake(s.discarded)
	for i := 0; i < 1000 && len(s.discarded) > 0; i++ {
		time.Sleep(time.Millisecond)
	}
	remove(t, s, ref)
	eventually(t, func() bool {
		s.mu.RLock()
		defer s.mu.RUnlock()
		return s.used == Usage{}
	})
}

// TestWhatCannotBeDeleted is said once, keeps nothing else from being deleted,
// and is tried again at the next start.
func TestWhatCannotBeDeleted(t *testing.T) {
	needRoot(t)
	cfg := testConfig(t)
	log := ktesting.NewLogger(t, ktesting.NewConfig(ktesting.BufferLogs(true)))
	said := func() (n int) {
		for _, line := range log.GetSink().(ktesting.Underlier).GetBuffer().Data() {
			if strings.Contains(line.Message, "until the next start") {
				n++
			}
		}
		return n
	}
	start := func() *Service {
		s, err := Open(klog.NewContext(context.Background(), log), cfg)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := start()
	mkdirs(t, s.path("stuck", "mounted"))
	if err := unix.Mount("none", s.path("stuck", "mounted"), "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(s.path("stuck"), s.path(trashDir, "stuck")); err != nil {
		t.Fatal(err)
	}
	mountpoint := s.path(trashDir, "stuck", "mounted")
	t.Cleanup(func() { _ = unix.Unmount(mountpoint, unix.MNT_DETACH) })
	for _, name := range []string{"a", "b", "c"} {
		mkdirs(t, s.path(trashDir, name))
		wake(s.discarded)
		eventually(t, func() bool { _, err := os.Lstat(s.path(trashDir, name)); return os.IsNotExist(err) && said() > 0 })
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if n := said(); n != 1 {
		t.Errorf("said %d times", n)
	}
	if err := unix.Unmount(mountpoint, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	s = start()
	eventually(t, func() bool { _, err := os.Lstat(s.path(trashDir, "stuck")); return os.IsNotExist(err) })
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
