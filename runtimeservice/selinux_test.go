package runtimeservice

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/runtimeservice/ocispec"
	"github.com/gantry-cri/gantry/sandbox/selinux"
)

// The labels of a container are the pod's but for what its options name; a privileged one's process has none.
func TestContainerLabels(t *testing.T) {
	if selinux.Enabled() {
		t.Skip("this machine runs SELinux, whose policy may not have the labels of this test")
	}
	of := selinux.Labels{Process: "u:r:t:s0:c1,c2", Mount: "u:object_r:f:s0:c1,c2"}
	for name, row := range map[string]struct {
		pod        selinux.Labels
		options    *runtimeapi.SELinuxOption
		privileged bool
		want       selinux.Labels
	}{
		"nothing said":           {of, nil, false, of},
		"type":                   {of, &runtimeapi.SELinuxOption{Type: "x"}, false, selinux.Labels{Process: "u:r:x:s0:c1,c2", Mount: of.Mount}},
		"level":                  {of, &runtimeapi.SELinuxOption{Level: "s0:c3"}, false, selinux.Labels{Process: "u:r:t:s0:c3", Mount: "u:object_r:f:s0:c3"}},
		"privileged":             {of, nil, true, selinux.Labels{Mount: of.Mount}},
		"privileged and level":   {of, &runtimeapi.SELinuxOption{Level: "s0:c3"}, true, selinux.Labels{Mount: "u:object_r:f:s0:c3"}},
		"privileged and type":    {of, &runtimeapi.SELinuxOption{Type: "x"}, true, selinux.Labels{Process: "u:r:x:s0:c1,c2", Mount: of.Mount}},
		"pod without labels":     {selinux.Labels{}, &runtimeapi.SELinuxOption{Type: "x"}, false, selinux.Labels{}},
		"the same, not a label":  {selinux.Labels{}, &runtimeapi.SELinuxOption{Type: "::"}, false, selinux.Labels{}},
		"empty options are none": {of, &runtimeapi.SELinuxOption{}, false, of},
	} {
		p := &pod{labels: row.pod}
		got, err := p.containerLabels(&runtimeapi.LinuxContainerSecurityContext{SelinuxOptions: row.options, Privileged: row.privileged})
		if err != nil || got != row.want {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, row.want)
		}
	}
	_, err := (&pod{labels: of}).containerLabels(&runtimeapi.LinuxContainerSecurityContext{SelinuxOptions: &runtimeapi.SELinuxOption{Type: "a:b"}})
	if !errdefs.IsInvalidArgument(err) {
		t.Errorf("a type with a colon: %v", err)
	}
}

// TestSecurityOfLabels is the cases of the catalogue about which mounts are relabelled. File systems keep labels
// without SELinux too.
func TestSecurityOfLabels(t *testing.T) {
	if os.Geteuid() != 0 || selinux.Enabled() {
		t.Skip("it takes root, and a kernel that does not look at labels")
	}
	dir := t.TempDir()
	var list []ocispec.Mount
	for target, asked := range map[string]bool{"/etc/hosts": false, "/etc/resolv.conf": false, "/etc/hostname": false, "/dev/shm": false, "/data": true} {
		m := &runtimeapi.Mount{ContainerPath: target, HostPath: filepath.Join(dir, filepath.Base(target)), SelinuxRelabel: asked}
		if err := os.WriteFile(m.HostPath, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		list = append(list, ocispec.Mount{CRI: m, Source: m.HostPath})
	}
	list = append(list, ocispec.Mount{CRI: &runtimeapi.Mount{Image: &runtimeapi.ImageSpec{Image: "i"}, SelinuxRelabel: true}, Source: filepath.Join(dir, "hosts")})
	t.Run("CVE-2021-43816", func(t *testing.T) {
		for _, label := range []string{"", "u:object_r:f:s0"} {
			if err := relabel(t.Context(), list, label, selinux.Relabel); err != nil {
				t.Fatal(err)
			}
			for _, m := range list {
				buf := make([]byte, 64)
				n, err := unix.Lgetxattr(m.Source, "security.selinux", buf)
				if err != nil && !errors.Is(err, unix.ENODATA) {
					t.Fatal(err)
				}
				want := ""
				if m.CRI.GetSelinuxRelabel() && m.CRI.GetImage() == nil {
					want = label
				}
				if got := string(buf[:max(n, 0)]); got != want {
					t.Errorf("%s has the label %q, want %q", m.CRI.GetContainerPath(), got, want)
				}
			}
		}
	})
}
