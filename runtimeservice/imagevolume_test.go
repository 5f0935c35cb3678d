package runtimeservice

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// hostile is a root with links in it that lead to the host as far as they can,
// and the host's directory beside it.
func hostile(t *testing.T) (root, host string) {
	t.Helper()
	base := t.TempDir()
	root, host = filepath.Join(base, "root"), filepath.Join(base, "host")
	for _, d := range []string{host, filepath.Join(root, "dir", "sub"), filepath.Join(root, "etc")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, body := range map[string]string{
		filepath.Join(host, "secret"): "the host's", filepath.Join(root, "dir", "file"): "the image's", filepath.Join(root, "etc", "f"): "the image's",
	} {
		if err := os.WriteFile(name, []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{
		"abs": host, "rel": "../host", "far": strings.Repeat("../", 40) + host[1:], "dir/up": "../../host", "dangling": "nowhere",
		"loop": "loop", "within": "/dir", "dir/back": "/../../dir", "magic": "/proc/self/root", "v": "/etc", "file": "/dir/file",
	} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(root, "fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	return root, host
}

func TestVolumeSource(t *testing.T) {
	root, _ := hostile(t)
	for sub, want := range map[string]string{
		"": "", "dir": "dir", "dir/sub": "dir/sub", "dir//sub/": "dir/sub", "./dir/.": "dir", "dir/file": "dir/file",
		"within": "dir", "within/sub": "dir/sub", "dir/back": "dir", "file": "dir/file",
	} {
		if got, err := volumeSource(root, sub); err != nil || got != filepath.Join(root, want) {
			t.Errorf("%q: %q, %v", sub, got, err)
		}
	}
	for _, sub := range []string{"missing", "dir/missing", "dangling", "loop", "loop/x", "dir/file/x", "fifo", "/", "/dir", "..", "dir/..", "dir/../dir", "../host", strings.Repeat("x", 300), strings.Repeat("x/", 5000), "a\x00b"} {
		if got, err := volumeSource(root, sub); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "image_sub_path") {
			t.Errorf("%.20q: %q, %v", sub, got, err)
		}
	}
}

// TestSecurity: what an image says never leads to the host.
func TestSecurity(t *testing.T) {
	for _, id := range []string{"CVE-2024-1753", "2.6-image-volume-subpath"} {
		t.Run(id, func(t *testing.T) {
			root, host := hostile(t)
			// Where the host's directory would be if the image's root were the host's.
			if err := os.MkdirAll(filepath.Join(root, host), 0o755); err != nil {
				t.Fatal(err)
			}
			for _, sub := range []string{"abs", "far"} {
				if got, err := volumeSource(root, sub); err != nil || got != filepath.Join(root, host) {
					t.Errorf("%q leads to %q, %v", sub, got, err)
				}
			}
			for _, sub := range []string{"rel", "dir/up", "abs/secret", "rel/secret", "far/secret", "dir/up/secret", "magic", "magic/etc", "magic/etc/passwd"} {
				if got, err := volumeSource(root, sub); err == nil {
					t.Errorf("%q leads to %q", sub, got)
				}
			}
		})
	}
	t.Run("2.6-image-volume-dotdot", func(t *testing.T) {
		root, _ := hostile(t)
		for _, sub := range []string{"..", "../host", "dir/../../host", "dir/.."} {
			if got, err := volumeSource(root, sub); !errdefs.IsInvalidArgument(err) {
				t.Errorf("%q: %q, %v", sub, got, err)
			}
		}
	})
	t.Run("2.6-image-volume-special-file", func(t *testing.T) {
		root, _ := hostile(t)
		if got, err := volumeSource(root, "fifo"); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q, %v", got, err)
		}
	})
	t.Run("CVE-2022-23648", func(t *testing.T) {
		root, host := hostile(t)
		declares := func(v string) imagespec.ImageConfig {
			return imagespec.ImageConfig{Volumes: map[string]struct{}{v: {}}}
		}
		for v, want := range map[string]string{"/v": "etc", "/within/sub": "dir/sub", "/new/volume": "new/volume"} {
			got, err := imageVolumes(declares(v), &runtimeapi.ContainerConfig{}, root, nil)
			if err != nil || got[v] != filepath.Join(root, want) {
				t.Errorf("%s: %v, %v", v, got, err)
			}
		}
		for _, v := range []string{"/../../etc", "/abs/x", "/rel/x", "/far/x", "/dir/up/x"} {
			got, err := imageVolumes(declares(v), &runtimeapi.ContainerConfig{}, root, nil)
			for _, dir := range got {
				if !strings.HasPrefix(dir, root+"/") {
					t.Errorf("%s leads to %s", v, dir)
				}
			}
			if len(got) == 0 && err == nil {
				t.Errorf("%s: neither contained nor refused", v)
			}
		}
		if left, err := os.ReadDir(host); err != nil || len(left) != 1 {
			t.Errorf("on the host there is now %v, %v", left, err)
		}
	})
}
