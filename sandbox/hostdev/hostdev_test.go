package hostdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func paths(nodes []specs.LinuxDevice) (list []string) {
	for _, d := range nodes {
		list = append(list, d.Path)
	}
	return list
}

func TestDevice(t *testing.T) {
	nodes, rules, err := Devices("/dev/null", "/dev/nothing", "rw")
	if err != nil || len(nodes) != 1 || len(rules) != 1 {
		t.Fatalf("%+v, %+v, %v", nodes, rules, err)
	}
	d, r := nodes[0], rules[0]
	if d.Path != "/dev/nothing" || d.Type != "c" || d.Major != 1 || d.Minor != 3 || *d.FileMode != 0o666 || *d.UID != 0 || *d.GID != 0 {
		t.Errorf("node %+v", d)
	}
	if !r.Allow || r.Type != "c" || *r.Major != 1 || *r.Minor != 3 || r.Access != "rw" {
		t.Errorf("rule %+v", r)
	}
	if _, _, err := Devices("/dev/zero", "/dev/../x", "r"); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("a container path with ..: %v", err)
	}
	if nodes, _, err := Devices("/dev/zero", "", "r"); err != nil || nodes[0].Path != "/dev/zero" {
		t.Errorf("without a container path: %+v, %v", nodes, err)
	}
}

func TestDeviceByLink(t *testing.T) {
	name := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink("/dev/full", name); err != nil {
		t.Fatal(err)
	}
	nodes, _, err := Devices(name, "/dev/x", "m")
	if err != nil || len(nodes) != 1 || nodes[0].Minor != 7 || nodes[0].Path != "/dev/x" {
		t.Errorf("%+v, %v", nodes, err)
	}
}

func TestRefused(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"toroot": "/", "toproc": "/proc/1", "tosys": "/sys/class"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		host, permissions string
		err               error
	}{
		{"/dev/null", "", errdefs.ErrInvalidArgument},
		{"/dev/null", "rx", errdefs.ErrInvalidArgument},
		{"dev/null", "r", errdefs.ErrInvalidArgument},
		{"", "r", errdefs.ErrInvalidArgument},
		{"/dev/missing", "r", fs.ErrNotExist},
		{"/dev/missing", "r", errdefs.ErrInvalidArgument},
		{file, "r", errdefs.ErrInvalidArgument},
		{dir, "r", errdefs.ErrInvalidArgument}, // no device in it
		// The audit's case: the whole host would be walked.
		{"/", "r", errdefs.ErrInvalidArgument},
		{"//./", "r", errdefs.ErrInvalidArgument},
		{"/proc", "r", errdefs.ErrInvalidArgument},
		{"/proc/self/root", "r", errdefs.ErrInvalidArgument},
		{"/proc/self/cwd/../../../../../../../..", "r", errdefs.ErrInvalidArgument},
		{"/sys", "r", errdefs.ErrInvalidArgument},
		{"/sys/fs/cgroup", "r", errdefs.ErrInvalidArgument},
		{dir + "/toroot", "r", errdefs.ErrInvalidArgument},
		{dir + "/toproc", "r", errdefs.ErrInvalidArgument},
		{dir + "/tosys", "r", errdefs.ErrInvalidArgument},
	} {
		if nodes, _, err := Devices(tc.host, "/dev/x", tc.permissions); !errors.Is(err, tc.err) {
			t.Errorf("%q, permissions %q: %v, %v; want %v", tc.host, tc.permissions, paths(nodes), err, tc.err)
		}
	}
}

// TestSecurity: a device that is the host's root, or a file system of the
// kernel's, is not walked (ADA-CRIO-22-04).
func TestSecurity(t *testing.T) {
	t.Run("ADA-CRIO-22-04", func(t *testing.T) {
		for range 100 {
			for _, dir := range []string{"/", "/proc", "/sys", "/proc/self/root"} {
				if _, _, err := Devices(dir, "/dev/x", "r"); !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), "name the device") {
					t.Fatalf("%s: %v", dir, err)
				}
			}
		}
	})
	t.Run("2.6-device-path", func(t *testing.T) {
		if nodes, _, err := Devices("/dev/null", "/dev/../etc/x", "r"); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%v, %v", paths(nodes), err)
		}
	})
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("in CI this may not be skipped: needs root to make device nodes")
	}
	t.Skip("needs root to make device nodes")
}

// mknod makes the node of /dev/null's numbers, or a block device of no driver.
func mknod(t *testing.T, name string, kind uint32, dev uint64) {
	t.Helper()
	if err := unix.Mknod(name, kind|0o640, int(dev)); err != nil {
		t.Fatal(err)
	}
}

func TestDirectory(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "by-id/deep"), 0o755); err != nil {
		t.Fatal(err)
	}
	mknod(t, filepath.Join(dir, "z"), unix.S_IFCHR, unix.Mkdev(1, 3))
	mknod(t, filepath.Join(dir, "by-id/deep/b"), unix.S_IFBLK, unix.Mkdev(300, 70000))
	mknod(t, filepath.Join(dir, "fifo"), unix.S_IFIFO, 0)
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"link": "z", "up": "..", "proc": "/proc"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	nodes, rules, err := Devices(dir, "/dev/snd/", "rwm")
	if err != nil || !slices.Equal(paths(nodes), []string{"/dev/snd/by-id/deep/b", "/dev/snd/z"}) || len(rules) != 2 {
		t.Fatalf("%v, %v", paths(nodes), err)
	}
	if b := nodes[0]; b.Type != "b" || b.Major != 300 || b.Minor != 70000 || *rules[0].Minor != 70000 || b.FileMode.Perm() != 0o640 {
		t.Errorf("node %+v, rule %+v", b, rules[0])
	}
}

func TestDirectoryBounded(t *testing.T) {
	dir := t.TempDir()
	for i := range 4 {
		if err := os.MkdirAll(filepath.Join(dir, fmt.Sprint(i), "a"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for left := range 10 {
		w := walker{root: root, left: left}
		if err := w.visit(".", nil, maxDepth); errors.Is(err, errdefs.ErrInvalidArgument) != (left < 8) {
			t.Errorf("%d entries allowed of 8: %v", left, err)
		}
	}
	deep := filepath.Join(dir, strings.Repeat("d/", maxDepth+1))
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Devices(dir, "/dev/x", "r"); !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), "deep") {
		t.Errorf("too deep: %v", err)
	}
}

func TestAll(t *testing.T) {
	nodes, err := All()
	if err != nil {
		t.Fatal(err)
	}
	list := paths(nodes)
	for _, want := range []string{"/dev/null", "/dev/zero", "/dev/tty"} {
		if !slices.Contains(list, want) {
			t.Errorf("%s is missing in %q", want, list)
		}
	}
	for _, own := range ownEntries {
		for _, p := range list {
			if p == "/dev/"+own || filepath.Dir(p) == "/dev/"+own {
				t.Errorf("%s is the container's own", p)
			}
		}
	}
	slices.Sort(list)
	if len(slices.Compact(slices.Clone(list))) != len(list) {
		t.Errorf("a device is there twice: %q", list)
	}
}
