package selinux

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// A file system keeps labels whether or not the kernel runs SELinux; to write them takes root.
const someLabel = "system_u:object_r:container_file_t:s0:c1,c2"

// volume is a directory with a file, and what is made beside it.
func volume(t *testing.T) (dir, outside string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not root: labels of files cannot be written")
	}
	if Enabled() {
		t.Skip("this machine runs SELinux, whose policy may not have the labels of this test")
	}
	top := t.TempDir()
	dir, outside = filepath.Join(top, "volume"), filepath.Join(top, "outside")
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "a/b"), 0o755), os.Mkdir(outside, 0o755),
		os.WriteFile(filepath.Join(dir, "a/b/file"), nil, 0o600), os.WriteFile(filepath.Join(outside, "file"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	return dir, outside
}

func labelOf(t *testing.T, path string) string {
	t.Helper()
	buf := make([]byte, 256)
	n, err := unix.Lgetxattr(path, attribute, buf)
	if err != nil && !errors.Is(err, unix.ENODATA) {
		t.Fatalf("%s: %v", path, err)
	}
	return string(buf[:max(n, 0)])
}

func TestRelabel(t *testing.T) {
	dir, _ := volume(t)
	if err := errors.Join(unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600), os.Symlink("nowhere", filepath.Join(dir, "a/link"))); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time nothing is written
		var before, after unix.Stat_t
		_ = unix.Stat(filepath.Join(dir, "a/b/file"), &before)
		labelled := labelOf(t, filepath.Join(dir, "a/b/file")) != ""
		if err := Relabel(t.Context(), dir, someLabel); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"", "a", "a/b", "a/b/file", "a/link", "fifo"} {
			if got := labelOf(t, filepath.Join(dir, name)); got != someLabel {
				t.Errorf("%q has the label %q", name, got)
			}
		}
		if _ = unix.Stat(filepath.Join(dir, "a/b/file"), &after); labelled && before.Ctim != after.Ctim {
			t.Error("a file that had the label was written to")
		}
	}
	file := filepath.Join(dir, "a/b/file")
	if err := Relabel(t.Context(), file, someLabel+"9"); err != nil || labelOf(t, file) != someLabel+"9" {
		t.Errorf("one file: %q, %v", labelOf(t, file), err)
	}
}

// TestSecurity is the cases of the catalogue about relabelling.
func TestSecurity(t *testing.T) {
	for id, test := range map[string]func(t *testing.T){
		"2.6-relabel-system":  relabelSystem,
		"2.6-relabel-alias":   relabelAlias,
		"2.6-relabel-link":    relabelLink,
		"2.6-relabel-mount":   relabelMount,
		"2.6-relabel-swapped": relabelSwapped,
		"2.6-relabel-depth":   relabelDepth,
		"2.6-relabel-context": relabelContext,
	} {
		t.Run(id, test)
	}
}

// The host's directories are refused, and what lies in those that programs and configuration are in.
func relabelSystem(t *testing.T) {
	volume(t)
	gone, cancel := context.WithCancel(t.Context())
	cancel() // nothing is labelled should the guard fail
	for _, path := range []string{"/", "/home", "/root", "/var", "/var/lib", "/tmp", "/etc", "/etc/hosts", "/usr", "/usr/bin", "/dev", "/dev/shm", "/proc", "/sys/fs", "/boot"} {
		if err := Relabel(gone, path, someLabel); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), path) {
			if errors.Is(err, unix.ENOENT) {
				continue
			}
			t.Errorf("%s: %v", path, err)
		}
	}
	for _, path := range []string{"/etcetera", "/usrlocal"} {
		if err := Relabel(gone, path, someLabel); errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// A system directory is known by what it is, not by its path.
func relabelAlias(t *testing.T) {
	dir, _ := volume(t)
	alias := filepath.Join(dir, "alias")
	if err := errors.Join(os.Mkdir(alias, 0o755), unix.Mount("/etc", alias, "", unix.MS_BIND, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(alias, unix.MNT_DETACH) })
	gone, cancel := context.WithCancel(t.Context())
	cancel() // nothing is labelled should the guard fail
	if err := Relabel(gone, alias, someLabel); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "the host's /etc") {
		t.Errorf("a bind mount of /etc: %v", err)
	}
}

// Symbolic links are labelled themselves, and not what they lead to.
func relabelLink(t *testing.T) {
	dir, outside := volume(t)
	if err := errors.Join(os.Symlink(outside, filepath.Join(dir, "dir")), os.Symlink(filepath.Join(outside, "file"), filepath.Join(dir, "file"))); err != nil {
		t.Fatal(err)
	}
	if err := Relabel(t.Context(), dir, someLabel); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{outside, filepath.Join(outside, "file")} {
		if got := labelOf(t, path); got != "" {
			t.Errorf("%s was relabelled by a link to it", path)
		}
	}
	if labelOf(t, filepath.Join(dir, "dir")) != someLabel || labelOf(t, filepath.Join(dir, "file")) != someLabel {
		t.Error("the links have no label")
	}
}

// A directory on the path that has become a link since the path was resolved leads nowhere.
func relabelSwapped(t *testing.T) {
	dir, outside := volume(t)
	if err := errors.Join(os.Rename(filepath.Join(dir, "a"), filepath.Join(dir, "was")), os.Symlink(outside, filepath.Join(dir, "a"))); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"a", "a/file"} {
		if err := Relabel(t.Context(), filepath.Join(dir, path), someLabel); !errors.Is(err, unix.ELOOP) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if labelOf(t, filepath.Join(outside, "file")) != "" {
		t.Error("a file was relabelled by a link on the path to it")
	}
}

// What is mounted within the volume was not named: a directory, a file.
func relabelMount(t *testing.T) {
	dir, outside := volume(t)
	for _, m := range [][2]string{{outside, "a/b"}, {filepath.Join(outside, "file"), "one"}} {
		target := filepath.Join(dir, m[1])
		if err := os.WriteFile(target, nil, 0o600); err != nil && !errors.Is(err, unix.EISDIR) {
			t.Fatal(err)
		}
		if err := unix.Mount(m[0], target, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
	}
	if err := Relabel(t.Context(), dir, someLabel); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{outside, filepath.Join(outside, "file")} {
		if labelOf(t, path) != "" {
			t.Errorf("%s was relabelled where it is mounted", path)
		}
	}
	if labelOf(t, filepath.Join(dir, "a")) != someLabel {
		t.Error("the volume has no label")
	}
}

// No container makes the daemon run out of descriptors.
func relabelDepth(t *testing.T) {
	dir, _ := volume(t)
	deep := dir
	for i := range maxDepth + 2 {
		deep = filepath.Join(deep, fmt.Sprint(i%10))
	}
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Relabel(t.Context(), dir, someLabel); !errdefs.IsFailedPrecondition(err) {
		t.Error(err)
	}
}

// A large volume is not relabelled for a client that has gone.
func relabelContext(t *testing.T) {
	dir, _ := volume(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Relabel(ctx, dir, someLabel); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if labelOf(t, filepath.Join(dir, "a/b/file")) != "" {
		t.Error("files were relabelled")
	}
}
