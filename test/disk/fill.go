package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

const filler = ".filler"

// FillBytes takes every block of the file system that dir is on, the last one too, until Free. The caller is root, to
// whom ext4 gives what it keeps back from others.
func FillBytes(t testing.TB, dir string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Join(dir, filler), 0o700))
	f, err := os.OpenFile(filepath.Join(dir, filler, "bytes"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	must(t, err)
	defer f.Close()
	for piece := make([]byte, 1<<20); len(piece) > 0; { // smaller and smaller ones
		n, err := f.Write(piece)
		switch {
		case errors.Is(err, unix.ENOSPC) && n == 0:
			piece = piece[:len(piece)/2]
		case err != nil && !errors.Is(err, unix.ENOSPC):
			t.Fatal(err)
		}
	}
	must(t, f.Sync()) // delayed allocation would give some back
}

// FillInodes takes every inode, until Free.
func FillInodes(t testing.TB, dir string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Join(dir, filler), 0o700))
	for n := 0; ; n++ {
		err := unix.Mknod(filepath.Join(dir, filler, fmt.Sprint(n)), unix.S_IFREG|0o600, 0)
		if errors.Is(err, unix.ENOSPC) {
			return
		}
		if !errors.Is(err, unix.EEXIST) { // filled before
			must(t, err)
		}
	}
}

// Free gives back what was filled.
func Free(t testing.TB, dir string) {
	t.Helper()
	must(t, os.RemoveAll(filepath.Join(dir, filler)))
}

// Tmpfs mounts one at dir.
func Tmpfs(t testing.TB, dir, options string) {
	t.Helper()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, options))
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
}
