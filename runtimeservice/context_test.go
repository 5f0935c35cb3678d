package runtimeservice

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/runtimeservice/lifecycle"
)

// TestSecurityOfContexts: what a security context leads to on the host.
func TestSecurityOfContexts(t *testing.T) {
	config := func(f func(*runtimeapi.LinuxContainerSecurityContext)) *runtimeapi.ContainerConfig {
		sc := &runtimeapi.LinuxContainerSecurityContext{}
		f(sc)
		return &runtimeapi.ContainerConfig{Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: sc}}
	}
	// An OCI runtime would follow the link, or be misled by what is no directory.
	t.Run("CVE-2019-19921", func(t *testing.T) {
		for _, name := range []string{"proc", "sys", "dev"} {
			for _, make := range []func(string) error{
				func(p string) error { return os.Symlink("/tmp", p) },
				func(p string) error { return os.Symlink("missing", p) },
				func(p string) error { return os.WriteFile(p, nil, 0o600) },
			} {
				root := t.TempDir()
				if err := make(filepath.Join(root, name)); err != nil {
					t.Fatal(err)
				}
				if err := checkRootfs(root); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "/"+name) {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
		if err := checkRootfs(t.TempDir()); err != nil {
			t.Errorf("none of them: %v", err)
		}
	})
	t.Run("2.6-target", func(t *testing.T) {
		s := &containers{&core{index: newIndex()}}
		add := func(p *pod, state lifecycle.Container) *container {
			c := &container{id: newID(), key: containerKey{pod: p.id, name: newID()}, pod: p, state: state, exited: make(chan struct{}), made: make(chan struct{})}
			s.index.addContainer(c)
			return c
		}
		one, two := &pod{id: "one"}, &pod{id: "two"}
		in := func(p *pod, target string) *container {
			return &container{id: newID(), pod: p, config: config(func(sc *runtimeapi.LinuxContainerSecurityContext) {
				sc.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: target}
			})}
		}
		if _, err := s.targetPID(in(one, add(two, lifecycle.ContainerExited).id)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("a container of another pod: %v", err)
		}
		for _, state := range []lifecycle.Container{lifecycle.ContainerCreated, lifecycle.ContainerExited} {
			target := add(one, state)
			if _, err := s.targetPID(in(one, target.id)); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("a target that is %v: %v", state, err)
			}
			if err := s.checkTarget(in(one, target.id)); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("a start when the target is %v: %v", state, err)
			}
		}
	})
}
