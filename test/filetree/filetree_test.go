package filetree

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Each change of one file must be seen, or the suites that compare trees prove nothing.
func TestEveryDifferenceIsSeen(t *testing.T) {
	for name, change := range map[string]func(file, dir string) error{
		"mode":      func(file, _ string) error { return os.Chmod(file, 0o4755) },
		"content":   func(file, _ string) error { return os.WriteFile(file, []byte("CONTENT"), 0) },
		"size":      func(file, _ string) error { return os.Truncate(file, 100) },
		"time":      func(file, _ string) error { return os.Chtimes(file, time.Time{}, time.Unix(7, 1)) },
		"xattr":     func(file, _ string) error { return unix.Lsetxattr(file, "user.a", []byte("b"), 0) },
		"link":      func(file, dir string) error { return os.Link(file, filepath.Join(dir, "other")) },
		"missing":   func(file, _ string) error { return os.Remove(file) },
		"directory": func(_, dir string) error { return os.Mkdir(filepath.Join(dir, "more"), 0o755) },
		"symlink": func(_, dir string) error {
			return os.Rename(filepath.Join(dir, "link2"), filepath.Join(dir, "link"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, "file")
			must(t, os.WriteFile(file, []byte("content"), 0o644))
			must(t, os.Chtimes(file, time.Time{}, time.Unix(7, 0)))
			must(t, os.Symlink("a", filepath.Join(dir, "link")))
			must(t, os.Symlink("b", filepath.Join(dir, "link2")))
			before, err := Read(dir)
			must(t, err)
			must(t, change(file, dir))
			if name != "time" && name != "missing" {
				_ = os.Chtimes(file, time.Time{}, time.Unix(7, 0)) // what is left must tell
			}
			after, err := Read(dir)
			must(t, err)
			if len(Diff(after, before)) == 0 || len(Diff(before, before)) != 0 {
				t.Errorf("not seen: %v", Diff(after, before))
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
