package overlay

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func pods() *IDMap {
	return &IDMap{
		UIDs: []IDRange{{Container: 0, Host: 200_000, Length: 1000}, {Container: 1000, Host: 300_000, Length: 1}},
		GIDs: []IDRange{{Container: 0, Host: 400_000, Length: 2000}},
	}
}

// inUserns runs a script as root of a user namespace with the mapping of pods.
func inUserns(t *testing.T, dir, script string) string {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-ec", script)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:                 unix.CLONE_NEWUSER,
		UidMappings:                []syscall.SysProcIDMap{{ContainerID: 0, HostID: 200_000, Size: 1000}, {ContainerID: 1000, HostID: 300_000, Size: 1}},
		GidMappings:                []syscall.SysProcIDMap{{ContainerID: 0, HostID: 400_000, Size: 2000}},
		GidMappingsEnableSetgroups: true,
		Credential:                 &syscall.Credential{Uid: 0, Gid: 0},
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return strings.TrimSpace(string(out))
}

func owner(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	check(t, unix.Lstat(path, &st))
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}

// TestIDMap: the root of a user namespace owns what root owns in the image,
// what it makes is on the host its own, and the layers do not change.
func TestIDMap(t *testing.T) {
	needRoot(t)
	for _, legacy := range []bool{false, true} {
		for _, attach := range []bool{false, true} {
			t.Run(fmt.Sprint("legacy ", legacy, " attach ", attach), func(t *testing.T) {
				var m Mounter
				m.legacy.Store(legacy)
				m.attach.Store(attach)
				base, lower := t.TempDir(), layers(t, 3)
				check(t, os.Chmod(filepath.Dir(base), 0o711))
				check(t, os.WriteFile(filepath.Join(lower[0], "user"), []byte("x"), 0o600))
				check(t, os.Lchown(filepath.Join(lower[0], "user"), 1000, 1000))
				check(t, os.WriteFile(filepath.Join(lower[1], "stranger"), nil, 0o600))
				check(t, os.Lchown(filepath.Join(lower[1], "stranger"), 5000, 5000))
				l := Layers{Lower: lower, Upper: filepath.Join(base, "u"), Work: filepath.Join(base, "w"), Map: pods(), Scratch: filepath.Join(base, "s")}
				target := filepath.Join(base, "t")
				for _, d := range []string{l.Upper, l.Work, l.Scratch, target} {
					check(t, os.Mkdir(d, 0o755))
				}
				check(t, os.Lchown(l.Upper, 200_000, 400_000))
				check(t, m.Mount(l, target))
				t.Cleanup(func() { check(t, Unmount(target)) })
				if want := attach || !kernelAtLeast(t, 6, 15); m.attach.Load() != want {
					t.Errorf("mounted the layers to map them: %v, want %v", m.attach.Load(), want)
				}
				if names, err := os.ReadDir(l.Scratch); err != nil || len(names) > 0 {
					t.Errorf("left mounted: %v, %v", names, err)
				}

				got := inUserns(t, target, `stat -c %u:%g . f0 f1 f2 user stranger | tr '\n' ' '
					echo new > new; chown 1000:1000 new; echo more >> user; echo more >> f1; chown 7:7 f2; rm f0`)
				if want := "0:0 0:0 0:0 0:0 1000:1000 65534:65534"; got != want {
					t.Errorf("seen within: %s, want %s", got, want)
				}
				for name, want := range map[string]string{
					"new": "300000:401000", "user": "300000:401000", "f1": "200000:400000", "f2": "200007:400007",
				} {
					if got := owner(t, filepath.Join(l.Upper, name)); got != want {
						t.Errorf("%s belongs to %s on the host, want %s", name, got, want)
					}
				}
				for path, want := range map[string]string{
					lower[0] + "/f0": "0:0", lower[1] + "/f1": "0:0", lower[2] + "/f2": "0:0", lower[0] + "/user": "1000:1000", lower[1] + "/stranger": "5000:5000",
				} {
					if got := owner(t, path); got != want {
						t.Errorf("layer's %s belongs to %s", filepath.Base(path), got)
					}
				}
			})
		}
	}
}

// TestNoIDMap has its layers on a file system that cannot be mapped: overlayfs.
func TestNoIDMap(t *testing.T) {
	needRoot(t)
	var m Mounter
	base := t.TempDir()
	on := filepath.Join(base, "on")
	for _, d := range []string{"on", "u", "w", "t", "s"} {
		check(t, os.Mkdir(filepath.Join(base, d), 0o755))
	}
	check(t, m.Mount(Layers{Lower: layers(t, 2)}, on))
	t.Cleanup(func() { check(t, Unmount(on)) })
	l := Layers{Lower: []string{on}, Upper: filepath.Join(base, "u"), Work: filepath.Join(base, "w"), Map: pods(), Scratch: filepath.Join(base, "s")}
	if err := m.Mount(l, filepath.Join(base, "t")); !errors.Is(err, ErrNoIDMap) {
		t.Errorf("got %v", err)
	}
	l.Map = nil
	check(t, m.Mount(l, filepath.Join(base, "t")))
	check(t, Unmount(filepath.Join(base, "t")))
}

func TestIDMapCheck(t *testing.T) {
	many := make([]IDRange, maxRanges+1)
	for i := range many {
		many[i] = IDRange{uint32(i), uint32(i), 1}
	}
	for _, c := range []struct {
		name string
		m    IDMap
		ok   bool
	}{
		{"two ranges", *pods(), true},
		{"none", IDMap{}, false},
		{"no gids", IDMap{UIDs: pods().UIDs}, false},
		{"too many", IDMap{many, many}, false},
		{"empty range", IDMap{[]IDRange{{0, 1, 0}}, pods().GIDs}, false},
		{"beyond the end", IDMap{[]IDRange{{0, 1 << 31, 1 << 31}}, pods().GIDs}, false},
		{"overlapping in the container", IDMap{[]IDRange{{0, 1000, 10}, {9, 2000, 10}}, pods().GIDs}, false},
		{"overlapping on the host", IDMap{pods().UIDs, []IDRange{{0, 1000, 10}, {10, 1009, 10}}}, false},
		{"side by side", IDMap{[]IDRange{{0, 1000, 10}, {10, 1010, 10}}, pods().GIDs}, true},
	} {
		if err := c.m.Check(); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	for id, want := range map[uint32]uint32{0: 200_000, 999: 200_999, 1000: 300_000, 1001: overflow, 1<<32 - 1: overflow} {
		if got, _ := pods().Host(id, 0); got != want {
			t.Errorf("%d is %d on the host", id, got)
		}
	}
}
