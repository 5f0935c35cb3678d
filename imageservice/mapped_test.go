package imageservice

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/imageservice/internal/overlay"
)

// TestMapped: a container in a user namespace, with a volume; and the same
// where layers cannot be mapped, as those on an overlay.
func TestMapped(t *testing.T) {
	needRoot(t)
	m := &IDMap{UIDs: []IDRange{{Container: 0, Host: 100_000, Length: 65536}}, GIDs: []IDRange{{Container: 0, Host: 200_000, Length: 65536}}}
	reg := newRegistry(t)
	user := file("home/u/f", "x")
	user.Uid, user.Gid = 1000, 1000
	tool := file("bin/tool", "t")
	tool.Mode = 0o4755
	img := imageOf(t, gzipLayer(t, dir("./", 0o755), dir("bin/", 0o755), tool, dir("home/", 0o755), dir("home/u/", 0o755), user), gzipLayer(t, symlink("link", "/bin/tool")))
	for _, copied := range []bool{false, true} {
		t.Run(fmt.Sprint("copied ", copied), func(t *testing.T) {
			cfg := testConfig(t)
			base := filepath.Dir(cfg.Root) // and the one above: others go through them, as in the name space of a pod
			if err := errors.Join(os.Chmod(base, 0o711), os.Chmod(filepath.Dir(base), 0o711)); err != nil {
				t.Fatal(err)
			}
			s := open(t, cfg)
			if err := os.Chmod(cfg.RunDir, 0o711); err != nil {
				t.Fatal(err)
			}
			id := pull(t, s, reg.push(t, "app", "latest", img))
			if copied {
				on := s.path(layersDir)
				var m overlay.Mounter
				if err := m.Mount(overlay.Layers{Lower: []string{on, s.path(emptyDir)}}, on); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					if err := overlay.Unmount(on); err != nil {
						t.Error(err)
					}
				})
			}
			root, err := s.MountMapped(t.Context(), "c1", id, m, "")
			if err != nil {
				t.Fatal(err)
			}
			seen := []string{root}
			volume, err := s.MountVolume(t.Context(), "c1", id)
			switch {
			case copied && !errdefs.IsFailedPrecondition(err):
				t.Errorf("volume: %v", err)
			case !copied && err != nil:
				t.Error(err)
			case !copied:
				seen = append(seen, volume)
			}
			for _, dir := range seen {
				got := asMappedRoot(t, m, dir, `stat -c '%u:%g:%a' . bin/tool home/u/f link | tr '\n' ' '`)
				if want := "0:0:755 0:0:4755 1000:1000:644 0:0:777"; got != want {
					t.Errorf("seen in %s: %s, want %s", dir, got, want)
				}
			}
			asMappedRoot(t, m, root, `echo x > new; echo x >> home/u/f; rm link`)
			for name, want := range map[string]string{"new": "100000:200000", "home/u/f": "101000:201000"} {
				var st unix.Stat_t
				if err := unix.Lstat(s.path(containersDir, "c1", "upper", name), &st); err != nil || fmt.Sprintf("%d:%d", st.Uid, st.Gid) != want {
					t.Errorf("%s belongs to %d:%d on the host, %v", name, st.Uid, st.Gid, err)
				}
			}
			other := mount(t, s, "c2", id) // the layers are as they were
			var st unix.Stat_t
			if err := unix.Lstat(filepath.Join(other, "home/u/f"), &st); err != nil || st.Uid != 1000 || st.Size != 1 {
				t.Errorf("the layer's file: %d, %d bytes, %v", st.Uid, st.Size, err)
			}
			if err := s.Retain(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			nothingMounted(t, s)
		})
	}
	s := open(t, testConfig(t))
	if _, err := s.MountMapped(t.Context(), "c1", "x", &IDMap{}, ""); !errdefs.IsInvalidArgument(err) {
		t.Errorf("mapping of nothing: %v", err)
	}
}

func asMappedRoot(t *testing.T, m *IDMap, dir, script string) string {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-ec", script)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:                 unix.CLONE_NEWUSER,
		UidMappings:                []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(m.UIDs[0].Host), Size: int(m.UIDs[0].Length)}},
		GidMappings:                []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(m.GIDs[0].Host), Size: int(m.GIDs[0].Length)}},
		GidMappingsEnableSetgroups: true,
		Credential:                 &syscall.Credential{},
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return strings.TrimSpace(string(out))
}

// TestMountSecurity: the root of one user namespace has no way to what is not
// its container's, even where directories above do not keep it away.
func TestMountSecurity(t *testing.T) {
	needRoot(t)
	t.Run("CVE-2021-21284", func(t *testing.T) {
		reg := newRegistry(t)
		cfg := testConfig(t)
		s := open(t, cfg)
		base := filepath.Dir(cfg.Root)
		for _, d := range []string{filepath.Dir(base), base, cfg.Root, cfg.RunDir} {
			if err := os.Chmod(d, 0o711); err != nil {
				t.Fatal(err)
			}
		}
		id := pull(t, s, reg.push(t, "app", "latest", imageOf(t, gzipLayer(t, dir("d/", 0o755), file("d/f", "image"), file("f", "image")))))
		var maps []*IDMap
		var roots []string
		for i, ctr := range []string{"c1", "c2"} {
			host := uint32(100_000 * (i + 1))
			maps = append(maps, &IDMap{UIDs: []IDRange{{Host: host, Length: 65536}}, GIDs: []IDRange{{Host: host, Length: 65536}}})
			root, err := s.MountMapped(t.Context(), ctr, id, maps[i], "")
			if err != nil {
				t.Fatal(err)
			}
			roots = append(roots, root)
		}
		volume := mountVolume(t, s, "c1", id)
		layer := s.dirs(s.images[id].layers)[0]
		for _, d := range []string{
			roots[1], roots[1] + "/d", layer, layer + "/d", volume, cfg.Root, cfg.RunDir, s.path(layersDir), s.path(containersDir), s.path(containersDir, "c1"),
			s.path(containersDir, "c1", "work"), s.path(containersDir, "c1", "upper"), s.path(containersDir, "c2", "upper"), s.path(tmpDir), s.path(trashDir), s.path(emptyDir),
		} {
			got := asMappedRoot(t, maps[0], roots[0], `for f in x f d/f layers; do (echo x >> '`+d+`'/$f) 2>/dev/null && echo $f; done; chmod 777 '`+d+`' 2>/dev/null && echo mode; true`)
			if got != "" {
				t.Errorf("%s: wrote %s", d, got)
			}
		}
		if got := asMappedRoot(t, maps[0], roots[0], `for f in x f d/f; do echo x >> $f && echo $f; done`); got != "x\nf\nd/f" {
			t.Errorf("in its own root it could write %q only", got)
		}
	})
}
