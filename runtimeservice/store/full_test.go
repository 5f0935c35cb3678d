package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/runtimeservice/lifecycle"
	"github.com/gantry-cri/gantry/test/disk"
)

// On a disk that has no block or no inode left, the records that are there go through all of their states, with what
// they get on the way, and are deleted; new ones fail and leave nothing; and all of it ends when there is space.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts a file system")
	}
	for _, kind := range []string{"ext4", "xfs", "tmpfs"} {
		for what, fill := range map[string]func(testing.TB, string){"bytes": disk.FillBytes, "inodes": disk.FillInodes} {
			t.Run(kind+" "+what, func(t *testing.T) {
				if kind == "xfs" && what == "inodes" {
					t.Skip("has as many as blocks")
				}
				dir := t.TempDir()
				switch kind {
				case "tmpfs":
					disk.Tmpfs(t, dir, "size=8m,nr_inodes=1k")
				case "xfs":
					disk.New(t, kind, 320<<20).Mount(t, dir, "")
				default:
					disk.New(t, kind, 16<<20, "-N", "1024").Mount(t, dir, "")
				}
				whileFull(t, dir, fill)
			})
		}
	}
}

func whileFull(t *testing.T, dir string, fill func(testing.TB, string)) {
	d, err := Open[Container](dir, "containers")
	if err != nil {
		t.Fatal(err)
	}
	const count = 20
	rec := sample()
	rec.Message, rec.State = "", lifecycle.ContainerCreating
	for i := range count {
		if err := d.Put(fmt.Sprint("c", i), rec); err != nil {
			t.Fatal(err)
		}
	}
	fill(t, dir)
	before := names(t, dir)
	for i := range count {
		if err := d.Put(fmt.Sprint("new", i), rec); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("a new record on a full disk: %v", err)
		}
	}
	if after := names(t, dir); after != before {
		t.Errorf("records that did not fit left %s, before there was %s", after, before)
	}
	for _, rec.State = range []lifecycle.Container{lifecycle.ContainerCreated, lifecycle.ContainerRunning, lifecycle.ContainerExited, lifecycle.ContainerRemoving} {
		rec.Message = strings.Repeat("m", room/2)
		for i := range count {
			if err := d.Put(fmt.Sprint("c", i), rec); err != nil {
				t.Fatal(err)
			}
		}
		got, damaged, err := d.Load()
		if err != nil || len(damaged) > 0 || len(got) != count || got["c3"].State != rec.State || got["c3"].Message != rec.Message {
			t.Fatalf("loaded %v, %v, %v", got, damaged, err)
		}
	}
	for i := range count / 2 {
		if err := d.Delete(fmt.Sprint("c", i)); err != nil {
			t.Fatal(err)
		}
	}
	disk.Free(t, dir)
	if err := d.Put("new", rec); err != nil {
		t.Error(err)
	}
	if got, damaged, err := d.Load(); err != nil || len(damaged) > 0 || len(got) != count/2+1 {
		t.Errorf("in the end: %v, %v, %v", got, damaged, err)
	}
}

func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, "containers"))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "spare-") {
			fmt.Fprintln(&b, e.Name())
		}
	}
	return b.String()
}

// A record that cannot be read now is none that is damaged: nothing is set aside, and the next Load has it.
func TestUnreadable(t *testing.T) {
	d, err := Open[Container](t.TempDir(), "containers")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Put("c", sample()); err != nil {
		t.Fatal(err)
	}
	t.Run("no descriptors", func(t *testing.T) {
		var was unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Fatal(err)
		}
		dir, err := os.Open(d.path) // whose number is one more than those of the others
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(dir.Fd()), Max: was.Max}); err != nil {
			t.Fatal(err)
		}
		_, readErr := d.read("c")
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Fatal(err)
		}
		if !errors.Is(readErr, unix.EMFILE) || isDamage(readErr) {
			t.Errorf("without descriptors: %v, damage %v", readErr, isDamage(readErr))
		}
	})
	t.Run("a disk that is gone", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("mounts a file system")
		}
		dir := t.TempDir()
		dev := disk.New(t, "ext4", 8<<20)
		dev.Mount(t, dir, "")
		d, err := Open[Container](dir, "containers")
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Put("c", sample()); err != nil {
			t.Fatal(err)
		}
		unix.Sync()
		if err := dev.Cut(); err != nil {
			t.Fatal(err)
		}
		if got, damaged, err := d.Load(); !errors.Is(err, unix.EIO) {
			t.Errorf("loaded %v, %v, %v from a disk that answers nothing", got, damaged, err)
		}
	})
}
