package overlay

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
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

func kernelAtLeast(t testing.TB, major, minor int) bool {
	t.Helper()
	var u unix.Utsname
	check(t, unix.Uname(&u))
	var x, y int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &x, &y); err != nil {
		t.Fatal(err)
	}
	return x > major || (x == major && y >= minor)
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
			if !legacy && m.legacy.Load() == kernelAtLeast(t, 6, 7) {
				t.Errorf("fell back: %v, but the kernel has lowerdir+: %v", m.legacy.Load(), kernelAtLeast(t, 6, 7))
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

// options are those of the mount at target that only its file system knows,
// and its propagation.
func options(t *testing.T, target string) (super []string, optional string) {
	t.Helper()
	info, err := os.ReadFile("/proc/self/mountinfo")
	check(t, err)
	for line := range strings.Lines(string(info)) {
		f := strings.Fields(line)
		if f[4] == target {
			return strings.Split(f[len(f)-1], ","), strings.Join(f[6:slices.Index(f, "-")], " ")
		}
	}
	t.Fatalf("nothing is mounted at %s", target)
	return nil, ""
}

// TestOptions: what the kernel says that it has mounted.
func TestOptions(t *testing.T) {
	needRoot(t)
	for _, legacy := range []bool{false, true} {
		var m Mounter
		m.legacy.Store(legacy)
		base := t.TempDir()
		check(t, unix.Mount(base, base, "", unix.MS_BIND, ""))
		t.Cleanup(func() { check(t, Unmount(base)) })
		check(t, unix.Mount("", base, "", unix.MS_SHARED, ""))
		l := Layers{Lower: layers(t, 2), Upper: filepath.Join(base, "u"), Work: filepath.Join(base, "w")}
		target := filepath.Join(base, "t")
		for _, d := range []string{l.Upper, l.Work, target} {
			check(t, os.Mkdir(d, 0o755))
		}
		check(t, m.Mount(l, target))
		t.Cleanup(func() { check(t, Unmount(target)) })
		got, propagation := options(t, target)
		if !slices.Contains(got, "volatile") && !slices.Contains(got, "fsync=volatile") { // how it is told has changed
			t.Errorf("legacy %v: volatile is not among %v", legacy, got)
		}
		// What is off by default is not shown; "on" is.
		if slices.Contains(got, "index=on") || slices.Contains(got, "metacopy=on") {
			t.Errorf("legacy %v: %v", legacy, got)
		}
		if propagation != "" {
			t.Errorf("legacy %v: propagates: %s", legacy, propagation)
		}
	}
}

func TestMostLayers(t *testing.T) {
	needRoot(t)
	var m Mounter
	old := !m.hasAPI()
	most := layers(t, MaxLayers+1)
	base := t.TempDir()
	l := Layers{Upper: filepath.Join(base, "u"), Work: filepath.Join(base, "w"), Scratch: filepath.Join(base, "s")}
	target := filepath.Join(base, "t")
	for _, d := range []string{l.Upper, l.Work, l.Scratch, target} {
		check(t, os.Mkdir(d, 0o755))
	}
	for _, c := range []struct {
		n                      int
		legacy, mapped, attach bool
		fits                   bool
	}{
		{n: MaxLayers, fits: true},
		{n: MaxLayers, mapped: true, fits: true},
		{n: MaxLayers, mapped: true, attach: true, fits: true},
		{n: MaxLayers + 1},
		{n: 200, legacy: true, fits: true},
		{n: 200, legacy: true, mapped: true, fits: true},
		{n: MaxLayers, legacy: true},
		{n: MaxLayers + 1, legacy: true},
	} {
		if old { // mount(2) it is whatever is asked for
			c.legacy, c.fits = true, c.n <= 200
		}
		m.legacy.Store(c.legacy)
		m.attach.Store(c.attach)
		l.Lower, l.Map = most[:c.n], nil
		if c.mapped {
			l.Map = pods()
		}
		err := m.Mount(l, target)
		if (err == nil) != c.fits || err != nil && !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%+v: %v", c, err)
		}
		if err == nil {
			names, err := os.ReadDir(target)
			if err != nil || len(names) != c.n {
				t.Errorf("%+v: %d files, %v", c, len(names), err)
			}
		}
		check(t, Unmount(target))
		check(t, os.RemoveAll(l.Work))
		check(t, os.Mkdir(l.Work, 0o755))
	}
	if _, err := m.View(most, target); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("view of too many: %v", err)
	}
}

// TestLongPaths: one option of fsconfig(2) has at most 256 bytes.
func TestLongPaths(t *testing.T) {
	needRoot(t)
	for _, legacy := range []bool{false, true} {
		var m Mounter
		m.legacy.Store(legacy)
		base := filepath.Join(t.TempDir(), strings.Repeat("d", 200), strings.Repeat("e", 200))
		l := Layers{Lower: []string{base + "/l"}, Upper: base + "/u", Work: base + "/w"}
		for _, d := range []string{l.Lower[0], l.Upper, l.Work, base + "/t"} {
			check(t, os.MkdirAll(d, 0o755))
		}
		check(t, m.Mount(l, base+"/t"))
		check(t, Unmount(base+"/t"))
		if m.legacy.Load() != legacy && new(Mounter).hasAPI() {
			t.Error("fell back")
		}
	}
}

func TestUnmountAll(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	for range 3 {
		check(t, unix.Mount("none", dir, "tmpfs", 0, ""))
	}
	check(t, os.WriteFile(filepath.Join(dir, "f"), nil, 0o600))
	check(t, Unmount(dir))
	check(t, unix.Rmdir(dir))
}
