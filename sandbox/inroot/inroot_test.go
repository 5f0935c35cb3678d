package inroot

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"
)

// tree makes a directory with a root in it, and beside the root a secret that
// nothing beneath the root may lead to.
func tree(t *testing.T, make func(root string)) (root string) {
	t.Helper()
	dir := t.TempDir()
	root = filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "secret"), "the host's")
	if err := os.Mkdir(filepath.Join(dir, "hostdir"), 0o755); err != nil {
		t.Fatal(err)
	}
	make(root)
	t.Cleanup(func() {
		if b, err := os.ReadFile(filepath.Join(dir, "secret")); err != nil || string(b) != "the host's" {
			t.Errorf("the host's file has changed: %q, %v", b, err)
		}
		if left, err := os.ReadDir(filepath.Join(dir, "hostdir")); err != nil || len(left) > 0 {
			t.Errorf("the host's directory has changed: %v, %v", left, err)
		}
	})
	return root
}

func write(t *testing.T, name, data string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, target, name string) {
	t.Helper()
	if err := os.Symlink(target, name); err != nil {
		t.Fatal(err)
	}
}

func TestReadFile(t *testing.T) {
	root := tree(t, func(root string) {
		write(t, root+"/etc/passwd", "root")
		write(t, root+"/etc/empty", "")
		write(t, root+"/secret", "the image's")
		link(t, "/etc/passwd", root+"/abs")
		link(t, "../../../../../secret", root+"/etc/up")
		link(t, filepath.Dir(root)+"/secret", root+"/out")
		link(t, "loop", root+"/loop")
		link(t, "/nowhere", root+"/dangling")
		link(t, "/", root+"/self")
		link(t, "/proc/self/root/etc/passwd", root+"/magic")
		if err := os.Mkdir(root+"/proc", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mkfifo(root+"/fifo", 0o644); err != nil {
			t.Fatal(err)
		}
		write(t, root+"/sparse", "")
		if err := os.Truncate(root+"/sparse", 20<<30); err != nil {
			t.Fatal(err)
		}
	})
	for _, tc := range []struct {
		name, want string
		err        error
	}{
		{name: "/etc/passwd", want: "root"},
		{name: "etc/passwd", want: "root"},
		{name: "//etc/./passwd", want: "root"},
		{name: "/etc/empty"},
		{name: "/abs", want: "root"},
		{name: "/self/self/etc/passwd", want: "root"},
		{name: "/../../etc/passwd", want: "root"},
		{name: "/etc/up", want: "the image's"}, // ".." ends at the root, as inside the container
		{name: "/../secret", want: "the image's"},
		{name: "/out", err: fs.ErrNotExist},
		{name: "/dangling", err: fs.ErrNotExist},
		{name: "/magic", err: fs.ErrNotExist},
		{name: "/missing", err: fs.ErrNotExist},
		{name: "/etc/passwd/x", err: unix.ENOTDIR},
		{name: "/loop", err: unix.ELOOP},
		{name: "/loop/x", err: errdefs.ErrInvalidArgument},
		{name: "/etc", err: errdefs.ErrInvalidArgument},
		{name: "/fifo", err: errdefs.ErrInvalidArgument},
		{name: "/sparse", err: errdefs.ErrInvalidArgument},
	} {
		got, err := ReadFile(root, tc.name, 100)
		if string(got) != tc.want || !errors.Is(err, tc.err) {
			t.Errorf("%s: %q, %v; want %q, %v", tc.name, got, err, tc.want, tc.err)
		}
	}
}

func TestReadFileCap(t *testing.T) {
	root := tree(t, func(root string) {
		write(t, root+"/fits", strings.Repeat("x", 100))
		write(t, root+"/large", strings.Repeat("x", 101))
	})
	if got, err := ReadFile(root, "fits", 100); err != nil || len(got) != 100 {
		t.Errorf("fits: %d bytes, %v", len(got), err)
	}
	if _, err := ReadFile(root, "large", 100); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("large: %v", err)
	}
}

// TestKernelFiles has files that lie about their size, are endless, or jump elsewhere.
func TestKernelFiles(t *testing.T) {
	for _, tc := range []struct {
		root, name string
		err        error
	}{
		{"/proc", "self/root/etc/passwd", unix.ELOOP},
		{"/proc", "self/fd/0", unix.ELOOP},
		{"/dev", "zero", errdefs.ErrInvalidArgument},
		{"/dev", "null", errdefs.ErrInvalidArgument},
	} {
		if _, err := ReadFile(tc.root, tc.name, 100); !errors.Is(err, tc.err) {
			t.Errorf("%s beneath %s: %v, want %v", tc.name, tc.root, err, tc.err)
		}
	}
	// st_size is 0 here, so only the reading can find out.
	if _, err := ReadFile("/proc", "cpuinfo", 10); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("cpuinfo: %v", err)
	}
}

func TestReadFileRootMissing(t *testing.T) {
	if _, err := ReadFile(t.TempDir()+"/missing", "x", 1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}

func TestMkdirAll(t *testing.T) {
	root := tree(t, func(root string) {
		write(t, root+"/file", "")
		if err := os.MkdirAll(root+"/there/sub", 0o700); err != nil {
			t.Fatal(err)
		}
		link(t, "/there", root+"/abs")
		link(t, "../../../../hostdir", root+"/up")
		link(t, filepath.Dir(root)+"/hostdir", root+"/out")
		link(t, "/nowhere", root+"/dangling")
		link(t, "loop", root+"/loop")
	})
	for _, tc := range []struct {
		name, made string // made is where it is then
		err        error
	}{
		{name: "/", made: "/"},
		{name: "/there/sub", made: "/there/sub"},
		{name: "/a/b/c", made: "/a/b/c"},
		{name: "a//b/./d/", made: "/a/b/d"},
		{name: "/abs/new/deep", made: "/there/new/deep"},
		{name: "/abs", made: "/there"},
		{name: "/a/../b", err: errdefs.ErrInvalidArgument},
		{name: "/up/x", err: errdefs.ErrInvalidArgument}, // leads to /hostdir of the image, which is not there
		{name: "/out/x", err: errdefs.ErrInvalidArgument},
		{name: "/dangling", err: errdefs.ErrInvalidArgument},
		{name: "/loop/x", err: unix.ELOOP},
		{name: "/file", err: unix.ENOTDIR},
		{name: "/file/x", err: unix.ENOTDIR},
	} {
		err := MkdirAll(root, tc.name, 0o750, os.Getuid(), os.Getgid())
		if !errors.Is(err, tc.err) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.err)
		}
		if tc.made == "" {
			continue
		}
		if info, err := os.Lstat(root + tc.made); err != nil || !info.IsDir() {
			t.Errorf("%s: no directory at %s: %v", tc.name, tc.made, err)
		}
	}
	if info, _ := os.Stat(root + "/there/sub"); info.Mode().Perm() != 0o700 {
		t.Errorf("the mode of what was there is now %v", info.Mode())
	}
}

func TestMkdirAllOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("in CI this may not be skipped: needs root to give files away")
		}
		t.Skip("needs root to give files away")
	}
	root := tree(t, func(root string) {})
	old := unix.Umask(0o077)
	err := MkdirAll(root, "/a/b", 0o755|fs.ModeSticky|fs.ModeSetgid, 1234, 5678)
	unix.Umask(old)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/a", "/a/b"} {
		var st unix.Stat_t
		if err := unix.Lstat(root+name, &st); err != nil {
			t.Fatal(err)
		}
		if st.Uid != 1234 || st.Gid != 5678 || st.Mode&0o7777 != 0o3755 {
			t.Errorf("%s: owner %d:%d, mode %o", name, st.Uid, st.Gid, st.Mode)
		}
	}
	var st unix.Stat_t
	if err := unix.Lstat(root, &st); err != nil || st.Uid != 0 {
		t.Errorf("the root now belongs to %d", st.Uid)
	}
}

func TestResolve(t *testing.T) {
	root := tree(t, func(root string) {
		write(t, root+"/data/f", "")
		link(t, "/data", root+"/abs")
		link(t, "../../../../../../data", root+"/data/up")
		link(t, filepath.Dir(root)+"/hostdir", root+"/out")
	})
	real, err := filepath.EvalSymlinks(root)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"/": "", "/data/f": "/data/f", "/abs/f": "/data/f", "/data/up/up": "/data"} {
		if got, err := Resolve(root, name); err != nil || got != real+want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if _, err := Resolve(root, "/out"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a link to the host: %v", err)
	}
}

// TestSwap swaps a directory for a link to the host as fast as it can, while
// files are read and directories made below it (CVE-2018-15664, CVE-2021-30465).
func TestSwap(t *testing.T) {
	root := tree(t, func(root string) {
		write(t, root+"/d/f", "the image's")
		link(t, filepath.Dir(root), root+"/l")
		link(t, "..", root+"/l2")
	})
	write(t, filepath.Dir(root)+"/f", "the host's")
	stop := make(chan struct{})
	swapped := make(chan error)
	go func() {
		var err error
		for i := 0; ; i++ {
			select {
			case <-stop:
				swapped <- err
				return
			default:
			}
			with := []string{"/l", "/l2"}[i%2]
			for range 2 { // there and back
				err = errors.Join(err, unix.Renameat2(unix.AT_FDCWD, root+"/d", unix.AT_FDCWD, root+with, unix.RENAME_EXCHANGE))
			}
		}
	}()
	read, made := 0, 0
	for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); {
		data, err := ReadFile(root, "/d/f", 100)
		if err == nil {
			read++
			if !bytes.Equal(data, []byte("the image's")) {
				t.Fatalf("read %q", data)
			}
		}
		if MkdirAll(root, "/d/new/deep", 0o755, os.Getuid(), os.Getgid()) == nil {
			made++
		}
		if _, err := os.Lstat(filepath.Dir(root) + "/new"); err == nil {
			t.Fatal("made a directory of the host")
		}
	}
	close(stop)
	if err := <-swapped; err != nil {
		t.Fatal(err)
	}
	if read == 0 || made == 0 {
		t.Errorf("the race has not been run: read %d times, made %d times", read, made)
	}
}
