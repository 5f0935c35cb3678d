package tree

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// deep makes a chain of n directories, further than any path reaches.
func deep(t *testing.T, dir string, n int) {
	t.Helper()
	fd, err := unix.Open(dir, openDir, 0)
	check(t, err)
	for range n {
		check(t, unix.Mkdirat(fd, "d", 0o700))
		sub, err := unix.Openat(fd, "d", openDir, 0)
		check(t, err)
		unix.Close(fd)
		fd = sub
	}
	f, err := unix.Openat(fd, "f", unix.O_CREAT|unix.O_WRONLY, 0o600)
	check(t, err)
	unix.Close(f)
	unix.Close(fd)
}

func TestRemove(t *testing.T) {
	base := t.TempDir()
	fd, err := unix.Open(base, openDir, 0)
	check(t, err)
	defer unix.Close(fd)
	outside := filepath.Join(base, "outside")
	check(t, os.MkdirAll(filepath.Join(outside, "kept"), 0o755))
	for name, prepare := range map[string]func(dir string){
		"nothing": nil,
		"empty":   func(string) {},
		"deep":    func(d string) { deep(t, d, 1000) },
		"wide": func(d string) {
			for i := range 1000 {
				check(t, os.WriteFile(filepath.Join(d, strings.Repeat("x", 1+i%200)+string(rune('a'+i/200))), nil, 0o600))
			}
		},
		"links": func(d string) {
			check(t, os.Symlink(outside, filepath.Join(d, "abs")))
			check(t, os.Symlink("../outside", filepath.Join(d, "rel")))
		},
		"names that removal uses": func(d string) {
			check(t, os.MkdirAll(filepath.Join(d, ".deep1", ".deep2"), 0o700))
			deep(t, d, 200)
		},
		"no permissions": func(d string) {
			check(t, os.MkdirAll(filepath.Join(d, "x", "y"), 0o700))
			if os.Getuid() == 0 {
				check(t, os.Chmod(filepath.Join(d, "x"), 0))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			if prepare != nil {
				check(t, os.Mkdir(filepath.Join(base, "victim"), 0o755))
				prepare(filepath.Join(base, "victim"))
			}
			check(t, Remove(t.Context(), fd, "victim"))
			names, err := os.ReadDir(base)
			if err != nil || len(names) != 1 {
				t.Errorf("left: %v, %v", names, err)
			}
			if _, err := os.Stat(filepath.Join(outside, "kept")); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestUsage(t *testing.T) {
	dir := t.TempDir()
	check(t, os.Mkdir(filepath.Join(dir, "d"), 0o755))
	check(t, os.WriteFile(filepath.Join(dir, "d", "f"), make([]byte, 100_000), 0o600))
	check(t, os.Link(filepath.Join(dir, "d", "f"), filepath.Join(dir, "again")))
	check(t, os.Symlink("/", filepath.Join(dir, "s")))
	bytes, inodes, err := Usage(t.Context(), dir)
	if err != nil || inodes != 4 || bytes < 100_000 || bytes > 150_000 {
		t.Errorf("%d bytes, %d inodes, %v", bytes, inodes, err)
	}
	other := t.TempDir()
	const levels = heldDirs*10 + 7
	deep(t, other, levels)
	if _, inodes, err = Usage(t.Context(), other); err != nil || inodes != levels+2 {
		t.Errorf("deep: %d inodes, %v", inodes, err)
	}
}

func TestSpread(t *testing.T) {
	dir := t.TempDir()
	for range 2 {
		check(t, Spread(dir))
	}
	check(t, os.Mkdir(filepath.Join(dir, "d"), 0o755))
}
