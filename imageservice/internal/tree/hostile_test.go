package tree

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("must run as root in CI: it mounts, changes owners and sets attributes")
		}
		t.Skip("needs root: it mounts, changes owners or sets attributes")
	}
}

// victim makes a directory to be removed beside one that nothing may touch.
func victim(t *testing.T) (base int, dir, outside string) {
	t.Helper()
	path := t.TempDir()
	fd, err := unix.Open(path, openDir, 0)
	check(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	dir, outside = filepath.Join(path, "victim"), filepath.Join(path, "outside")
	check(t, os.MkdirAll(filepath.Join(outside, "d"), 0o755))
	check(t, os.WriteFile(filepath.Join(outside, "kept"), []byte("kept"), 0o644))
	check(t, os.Mkdir(dir, 0o755))
	return fd, dir, outside
}

func untouched(t *testing.T, outside string) {
	t.Helper()
	if body, err := os.ReadFile(filepath.Join(outside, "kept")); err != nil || string(body) != "kept" {
		t.Errorf("outside: %q, %v", body, err)
	}
	if _, err := os.Stat(filepath.Join(outside, "d")); err != nil {
		t.Error(err)
	}
}

func setFlags(t *testing.T, path string, flags int) {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	check(t, err)
	t.Cleanup(func() { // so that the test's directory can go, whatever has failed
		clearFlags(fd)
		unix.Close(fd)
	})
	if err := unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags); errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) {
		t.Skipf("the file system of %s has no attributes: %v", path, err)
	} else {
		check(t, err)
	}
}

func TestRemoveProtected(t *testing.T) {
	needRoot(t)
	base, dir, outside := victim(t)
	check(t, os.MkdirAll(filepath.Join(dir, "d", "sub"), 0o755))
	deepest := dir
	for range heldDirs + 3 {
		deepest = filepath.Join(deepest, "deep")
		check(t, os.Mkdir(deepest, 0o755))
	}
	for _, f := range []string{"immutable", "append", "d/f", "d/sub/f"} {
		check(t, os.WriteFile(filepath.Join(dir, f), nil, 0o600))
	}
	check(t, os.Symlink(filepath.Join(outside, "kept"), filepath.Join(dir, "d", "link")))
	setFlags(t, filepath.Join(outside, "kept"), protected)
	for path, flags := range map[string]int{
		"immutable": 0x10, "append": 0x20, "d/f": 0x10, "d/sub/f": 0x30, "d/sub": 0x20, "d": 0x10, ".": 0x10,
	} {
		setFlags(t, filepath.Join(dir, path), flags)
	}
	setFlags(t, deepest, 0x10)
	setFlags(t, filepath.Dir(filepath.Dir(deepest)), 0x10)
	check(t, Remove(t.Context(), base, "victim"))
	if _, err := os.Lstat(dir); !os.IsNotExist(err) {
		t.Errorf("still there: %v", err)
	}
	if err := os.Remove(filepath.Join(outside, "kept")); !errors.Is(err, unix.EPERM) {
		t.Errorf("the file outside has lost its attributes: %v", err)
	}
	untouched(t, outside)
}

// TestRemoveWhatCannotBe: the rest goes, and the error names what stays.
func TestRemoveWhatCannotBe(t *testing.T) {
	needRoot(t)
	base, dir, outside := victim(t)
	mounted := filepath.Join(dir, "a", "mounted")
	check(t, os.MkdirAll(mounted, 0o755))
	check(t, os.WriteFile(filepath.Join(dir, "z"), nil, 0o600))
	check(t, os.WriteFile(filepath.Join(dir, "a", "z"), nil, 0o600))
	check(t, unix.Mount(outside, mounted, "", unix.MS_BIND, ""))
	t.Cleanup(func() { _ = unix.Unmount(mounted, unix.MNT_DETACH) })
	err := Remove(t.Context(), base, "victim")
	if !errors.Is(err, unix.EXDEV) || !strings.Contains(err.Error(), "mounted") {
		t.Errorf("got %v", err)
	}
	untouched(t, outside)
	for _, gone := range []string{"z", "a/z"} {
		if _, err := os.Lstat(filepath.Join(dir, gone)); !os.IsNotExist(err) {
			t.Errorf("%s: %v", gone, err)
		}
	}
	if err := Remove(t.Context(), base, "victim/a/mounted"); err == nil {
		t.Error("what is mounted was removed")
	}
	untouched(t, outside)
	check(t, unix.Unmount(mounted, 0))
	check(t, Remove(t.Context(), base, "victim"))
}

// TestRemoveInUse: files stay open, and somebody goes on making more.
func TestRemoveInUse(t *testing.T) {
	base, dir, outside := victim(t)
	f, err := os.Create(filepath.Join(dir, "open"))
	check(t, err)
	defer f.Close()
	check(t, os.Mkdir(filepath.Join(dir, "busy"), 0o755))
	busy, err := unix.Open(filepath.Join(dir, "busy"), openDir, 0)
	check(t, err)
	defer unix.Close(busy)
	started, over := make(chan struct{}), make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		for i := 0; ; i++ {
			name := string(rune('a' + i%26))
			_ = unix.Mkdirat(busy, name, 0o700)
			if fd, err := unix.Openat(busy, name+"/f", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600); err == nil {
				unix.Close(fd)
			}
			if i == 100 {
				close(started)
			}
			select {
			case <-over:
				return
			default:
			}
		}
	})
	<-started
	// Somebody may win every round; then the error says so.
	if err := Remove(t.Context(), base, "victim"); err != nil && !errors.Is(err, unix.ENOTEMPTY) {
		t.Error(err)
	}
	close(over)
	writer.Wait()
	check(t, Remove(t.Context(), base, "victim"))
	if _, err := os.Lstat(dir); !os.IsNotExist(err) {
		t.Errorf("still there: %v", err)
	}
	if _, err := f.WriteString("x"); err != nil {
		t.Error(err)
	}
	untouched(t, outside)
}

func TestRemoveStops(t *testing.T) {
	base, dir, _ := victim(t)
	check(t, os.WriteFile(filepath.Join(dir, "f"), nil, 0o600))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Remove(ctx, base, "victim"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Lstat(dir); err != nil {
		t.Error(err)
	}
}

// TestDeep is short of a million levels so that it is quick; what it needs
// must not depend on the depth.
func TestDeep(t *testing.T) {
	const levels = 3_000
	base, dir, _ := victim(t)
	deep(t, dir, levels)
	var limit unix.Rlimit
	check(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	fds, err := os.ReadDir("/proc/self/fd")
	check(t, err)
	few := limit
	few.Cur = uint64(len(fds)) + 2*heldDirs + 20
	check(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &few))
	t.Cleanup(func() { check(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)) })
	if _, inodes, err := Usage(t.Context(), dir); err != nil || inodes != levels+2 {
		t.Errorf("%d inodes, %v", inodes, err)
	}
	check(t, Remove(t.Context(), base, "victim"))
}

// TestSecurity: whoever writes in a tree does not lead those out of it who
// walk it.
func TestSecurity(t *testing.T) {
	t.Run("CVE-2023-0778-links", func(t *testing.T) {
		_, dir, outside := victim(t)
		check(t, os.Symlink(outside, filepath.Join(dir, "link")))
		fd, err := unix.Open(dir, openDir, 0)
		check(t, err)
		defer unix.Close(fd)
		for _, name := range []string{"link", "link/d", "..", "../outside", outside} {
			if f, err := openIn(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC); err == nil {
				t.Errorf("%s was opened", name)
				f.Close()
			}
		}
		if _, inodes, err := Usage(t.Context(), dir); err != nil || inodes != 2 {
			t.Errorf("%d inodes, %v", inodes, err)
		}
		if _, _, err := Usage(t.Context(), filepath.Join(dir, "link")); err == nil {
			t.Error("measured what a link leads to")
		}
	})
	t.Run("CVE-2023-0778-swapped", func(t *testing.T) {
		base, dir, outside := victim(t)
		for i := range 200 {
			check(t, os.Mkdir(filepath.Join(outside, strings.Repeat("x", i+1)), 0o755))
		}
		swap := swapping(t, dir, outside)
		for range 2000 {
			if _, inodes, err := Usage(t.Context(), dir); err != nil || inodes > 3 {
				t.Fatalf("%d inodes, %v", inodes, err)
			}
		}
		swap()
		check(t, Remove(t.Context(), base, "victim"))
		untouched(t, outside)
	})
	t.Run("CVE-2018-15664-removal", func(t *testing.T) {
		for range 200 {
			base, dir, outside := victim(t)
			swap := swapping(t, dir, outside)
			if err := Remove(t.Context(), base, "victim"); err != nil && !errors.Is(err, unix.ENOTEMPTY) {
				t.Fatal(err)
			}
			swap()
			untouched(t, outside)
		}
	})
	t.Run("2.8-mounted-below", func(t *testing.T) {
		needRoot(t)
		base, dir, outside := victim(t)
		mounted := filepath.Join(dir, "mounted")
		check(t, os.Mkdir(mounted, 0o755))
		check(t, unix.Mount(outside, mounted, "", unix.MS_BIND, ""))
		defer func() { check(t, unix.Unmount(mounted, unix.MNT_DETACH)) }()
		if _, inodes, err := Usage(t.Context(), dir); err != nil || inodes != 1 {
			t.Errorf("%d inodes, %v", inodes, err)
		}
		if err := Remove(t.Context(), base, "victim"); err == nil {
			t.Error("removed a tree with a mount in it")
		}
		untouched(t, outside)
	})
}

// swapping exchanges a directory for a link to outside all the time, until the
// function is called that it returns.
func swapping(t *testing.T, dir, outside string) (stop func()) {
	t.Helper()
	check(t, os.Mkdir(filepath.Join(dir, "a"), 0o755))
	check(t, os.Symlink(outside, filepath.Join(dir, "b")))
	fd, err := unix.Open(dir, openDir, 0)
	check(t, err)
	over := make(chan struct{})
	var swapper sync.WaitGroup
	swapper.Go(func() {
		for {
			select {
			case <-over:
				return
			default:
			}
			_ = unix.Renameat2(fd, "a", fd, "b", unix.RENAME_EXCHANGE)
		}
	})
	return func() {
		close(over)
		swapper.Wait()
		unix.Close(fd)
	}
}

func TestShift(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	for name, mode := range map[string]uint32{"plain": 0o640, "setuid": 0o4755, "setgid": 0o2755, "caps": 0o755} {
		path := filepath.Join(dir, name)
		check(t, os.WriteFile(path, []byte("x"), 0o600))
		check(t, os.Lchown(path, 5, 7))
		check(t, unix.Chmod(path, mode))
	}
	check(t, os.MkdirAll(filepath.Join(dir, "d", "sub"), 0o755))
	check(t, os.Symlink("/etc/passwd", filepath.Join(dir, "d", "link")))
	check(t, unix.Mkfifo(filepath.Join(dir, "d", "sub", "fifo"), 0o644))
	caps := []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0} // CAP_NET_BIND_SERVICE, effective
	check(t, unix.Lsetxattr(filepath.Join(dir, "caps"), capability, caps, 0))
	var before unix.Stat_t
	check(t, unix.Lstat("/etc/passwd", &before))
	add := func(uid, gid uint32) (uint32, uint32) { return uid + 100_000, gid + 200_000 }
	check(t, Shift(t.Context(), dir, add))
	for name, want := range map[string][3]uint32{
		".": {0, 0, 0o755}, "plain": {100_005, 200_007, 0o640}, "setuid": {100_005, 200_007, 0o4755}, "setgid": {100_005, 200_007, 0o2755},
		"d": {100_000, 200_000, 0o755}, "d/sub": {100_000, 200_000, 0o755}, "d/link": {100_000, 200_000, 0o777}, "d/sub/fifo": {100_000, 200_000, 0o644},
	} {
		var st unix.Stat_t
		check(t, unix.Lstat(filepath.Join(dir, name), &st))
		if st.Uid != want[0] || st.Gid != want[1] || st.Mode&0o7777 != want[2] {
			t.Errorf("%s: %d:%d %o", name, st.Uid, st.Gid, st.Mode&0o7777)
		}
	}
	buf := make([]byte, 64)
	n, err := unix.Lgetxattr(filepath.Join(dir, "caps"), capability, buf)
	check(t, err)
	want := append(append([]byte{1, 0, 0, 3}, caps[4:]...), 0xa0, 0x86, 1, 0)
	if string(buf[:n]) != string(want) {
		t.Errorf("capabilities: %x, want %x", buf[:n], want)
	}
	var after unix.Stat_t
	if check(t, unix.Lstat("/etc/passwd", &after)); after.Uid != before.Uid || after.Gid != before.Gid {
		t.Error("followed a link")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Shift(ctx, dir, add); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
