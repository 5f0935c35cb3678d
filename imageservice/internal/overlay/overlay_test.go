package overlay

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("must run as root in CI: it mounts")
		}
		t.Skip("needs root: it mounts")
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// layers makes directories with one file each, below a long path.
func layers(t *testing.T, n int) []string {
	base := filepath.Join(t.TempDir(), strings.Repeat("long", 30))
	var dirs []string
	for i := range n {
		d := filepath.Join(base, fmt.Sprintf("%064d:,\\", i))
		check(t, os.MkdirAll(d, 0o755))
		check(t, os.WriteFile(filepath.Join(d, fmt.Sprint("f", i)), nil, 0o644))
		dirs = append(dirs, d)
	}
	return dirs
}

func TestMount(t *testing.T) {
	needRoot(t)
	for _, legacy := range []bool{false, true} {
		t.Run(fmt.Sprint("legacy ", legacy), func(t *testing.T) {
			var m Mounter
			m.legacy.Store(legacy)
			base := t.TempDir()
			l := Layers{Lower: layers(t, 200), Upper: filepath.Join(base, "u"), Work: filepath.Join(base, "w")}
			target := filepath.Join(base, "t")
			for _, d := range []string{l.Upper, l.Work, target} {
				check(t, os.Mkdir(d, 0o755))
			}
			check(t, m.Mount(l, target))
			names, err := os.ReadDir(target)
			check(t, err)
			if len(names) != 200 {
				t.Errorf("%d files", len(names))
			}
			check(t, os.WriteFile(filepath.Join(target, "new"), nil, 0o644))
			if _, err := os.Stat(filepath.Join(l.Upper, "new")); err != nil {
				t.Error(err)
			}
			if !legacy && m.legacy.Load() {
				t.Error("fell back although the kernel has lowerdir+")
			}
			for range 2 {
				check(t, Unmount(target))
			}
			if names, err := os.ReadDir(target); err != nil || len(names) != 0 {
				t.Errorf("still mounted: %v, %v", names, err)
			}
			check(t, Unmount(filepath.Join(base, "none")))
		})
	}
}

func TestView(t *testing.T) {
	needRoot(t)
	for _, legacy := range []bool{false, true} {
		var m Mounter
		m.legacy.Store(legacy)
		scratch := t.TempDir()
		fd, err := m.View(layers(t, 2), scratch)
		check(t, err)
		for _, name := range []string{"f0", "f1"} {
			var st unix.Stat_t
			check(t, unix.Fstatat(fd, name, &st, 0))
		}
		if _, err := unix.Openat(fd, "x", unix.O_CREAT|unix.O_WRONLY, 0o600); !errors.Is(err, unix.EROFS) {
			t.Errorf("writable: %v", err)
		}
		unix.Close(fd)
		if names, err := os.ReadDir(scratch); err != nil || len(names) != 0 {
			t.Errorf("left mounted: %v, %v", names, err)
		}
	}
}

func TestMountFails(t *testing.T) {
	needRoot(t)
	for _, legacy := range []bool{false, true} {
		var m Mounter
		m.legacy.Store(legacy)
		base := t.TempDir()
		l := Layers{Lower: []string{filepath.Join(base, "none")}, Upper: base, Work: base}
		if err := m.Mount(l, base); err == nil || !strings.Contains(err.Error(), "none") {
			t.Errorf("legacy %v: %v", legacy, err)
		}
	}
}
