package journal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/test/disk"
)

// On a disk without a block or an inode, every record that was put can be deleted, before the journal is opened anew and
// after that; there is no moment when a record is in memory and not on disk; and with space all goes on.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts a file system")
	}
	for _, kind := range []string{"ext4", "xfs", "tmpfs"} {
		for what, fill := range map[string]func(testing.TB, string){"bytes": disk.FillBytes, "inodes": disk.FillInodes} {
			t.Run(kind+" "+what, func(t *testing.T) {
				dir := t.TempDir()
				switch kind {
				case "tmpfs":
					disk.Tmpfs(t, dir, "size=8m,nr_inodes=1k")
				case "xfs":
					if what == "inodes" {
						t.Skip("has as many as blocks")
					}
					disk.New(t, kind, 320<<20).Mount(t, dir, "")
				default:
					disk.New(t, kind, 16<<20, "-N", "1024").Mount(t, dir, "")
				}
				whileFull(t, filepath.Join(dir, "j"), fill)
			})
		}
	}
}

func whileFull(t *testing.T, path string, fill func(testing.TB, string)) {
	const count = 3000 // deletions of more than roomStep
	j, _ := open(t, path)
	key := func(i int) string { return fmt.Sprint("a-key-of-some-length-", i) }
	for i := range count {
		if err := j.Put(key(i), i, false); err != nil {
			t.Fatal(err)
		}
	}
	fill(t, filepath.Dir(path))
	for i := range count / 2 {
		if err := j.Delete(key(i)); err != nil {
			t.Fatal(err)
		}
	}
	more := 0
	for ; more < count; more++ { // what there is room for until then
		if err := j.Put(key(count+more), more, false); errors.Is(err, unix.ENOSPC) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j, got := open(t, path)
	if n := len(strings.Fields(got)); n != count/2+more {
		t.Errorf("%d records after it was opened anew, want %d", n, count/2+more)
	}
	for i := count / 2; i < count+more; i++ {
		if err := j.Delete(key(i)); err != nil {
			t.Fatal(err)
		}
	}
	if _, got := open(t, path); got != "" {
		t.Errorf("after all were deleted there are %s", got)
	}
	disk.Free(t, filepath.Dir(path))
	if err := errors.Join(j.Put("b", 2, true), j.Put("c", 3, false)); err != nil {
		t.Error(err)
	}
	if _, got := open(t, path); got != "b=2 c=3" {
		t.Errorf("with space: %s", got)
	}
}

// A journal on a read-only disk is read; changes fail, and succeed once it can be written.
func TestReadOnlyDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts a file system")
	}
	dir := t.TempDir()
	disk.Tmpfs(t, dir, "")
	path := filepath.Join(dir, "j")
	// A record that is refused, and half a line.
	if err := os.WriteFile(path, []byte(`{"k":"refused","v":1}`+"\n"+`{"k":"a","v":1}`+"\n"+`{"k":"ha`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	j, got := open(t, path)
	if got != "a=1" {
		t.Errorf("read %s", got)
	}
	if err := errors.Join(j.Put("b", 2, false), j.Delete("a")); !errors.Is(err, unix.EROFS) {
		t.Errorf("changes of a read-only journal: %v", err)
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, ""); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(j.Put("b", 2, false), j.Delete("a")); err != nil {
		t.Error(err)
	}
	if _, got := open(t, path); got != "b=2" {
		t.Errorf("with a disk that can be written: %s", got)
	}
}
