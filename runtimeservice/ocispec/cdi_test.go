package ocispec

import (
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestCDIDevices(t *testing.T) {
	cfg := &runtimeapi.ContainerConfig{
		CDIDevices:  []*runtimeapi.CDIDevice{{Name: "v/c=2"}, {Name: "v/c=1"}, {Name: "v/c=2"}},
		Annotations: map[string]string{"cdi.k8s.io/b": "v/c=4,v/c=1", "cdi.k8s.io/a": "v/c=3", "cdi.k8s.iox/a": "v/c=9", "other": "v/c=9"},
	}
	got, err := CDIDevices(cfg)
	if want := []string{"v/c=2", "v/c=1", "v/c=3", "v/c=4"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
}

func TestCDIEdits(t *testing.T) {
	c := testContainer()
	c.Config.CDIDevices = []*runtimeapi.CDIDevice{{Name: "v/c=1"}}
	c.Config.Mounts = []*runtimeapi.Mount{{HostPath: "/h", ContainerPath: "/lib/x"}, {HostPath: "/h", ContainerPath: "/lib/x/y/z"}}
	c.Mounts = []Mount{{CRI: c.Config.Mounts[0], Source: "/h"}, {CRI: c.Config.Mounts[1], Source: "/h"}}
	c.CDI = &CDIEdits{
		Env: []string{"LANG=device", "NEW=1=2"},
		Mounts: []specs.Mount{
			{Destination: "/lib/x", Type: "bind", Source: "/d/x", Options: []string{"rbind"}},
			{Destination: "/lib/x/y", Type: "bind", Source: "/d/y", Options: []string{"rbind"}},
			{Destination: "/etc/hosts", Type: "bind", Source: "/d/hosts", Options: []string{"rbind"}},
		},
		Hooks: &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/h", Env: []string{"PATH=/bin"}}}},
		GIDs:  []uint32{0, 44, 44},
	}
	n, p := testNode(), testPod()
	spec, _, err := Build(n, p, c)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"PATH=/bin", "LANG=device", "HOSTNAME=web-0", "NEW=1=2"}; !slices.Equal(spec.Process.Env, want) {
		t.Errorf("env %q, want %q", spec.Process.Env, want)
	}
	if want := []uint32{0, 44}; !slices.Equal(spec.Process.User.AdditionalGids, want) {
		t.Errorf("groups %v, want %v", spec.Process.User.AdditionalGids, want)
	}
	if spec.Hooks == nil || len(spec.Hooks.CreateRuntime) != 1 {
		t.Errorf("hooks %v", spec.Hooks)
	}
	var order []string
	for _, m := range spec.Mounts {
		if strings.HasPrefix(m.Destination, "/lib") || m.Destination == "/etc/hosts" {
			order = append(order, m.Destination+"<"+m.Source)
		}
	}
	if want := []string{"/lib/x</d/x", "/etc/hosts</d/hosts", "/lib/x/y</d/y", "/lib/x/y/z</h"}; !slices.Equal(order, want) {
		t.Errorf("mounts %q, want %q", order, want)
	}
	if !slices.Equal(c.Image.Env, []string{"PATH=/bin", "LANG=C.UTF-8"}) {
		t.Errorf("the image's environment is %q now", c.Image.Env)
	}

	for name, spoil := range map[string]func(*CDIEdits){
		"/proc":      func(e *CDIEdits) { e.Mounts[0].Destination = "/proc" },
		"/proc/self": func(e *CDIEdits) { e.Mounts[0].Destination = "/proc/self" },
		"/dev":       func(e *CDIEdits) { e.Mounts[0].Destination = "/dev" },
		"/dev/null":  func(e *CDIEdits) { e.Mounts[0].Destination = "/dev/null" },
		"/sys":       func(e *CDIEdits) { e.Mounts[0].Destination = "/sys" },
		"NUL":        func(e *CDIEdits) { e.Env[0] = "A=\x00" },
	} {
		bad := *c.CDI
		bad.Env, bad.Mounts = slices.Clone(bad.Env), slices.Clone(bad.Mounts)
		spoil(&bad)
		c := c
		c.CDI = &bad
		if _, _, err := Build(n, p, c); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSecurityHooks: no hook runs with the environment of the container, and
// none comes from the request or the image.
func TestSecurityHooks(t *testing.T) {
	t.Run("CVE-2025-23266", func(t *testing.T) {
		c := testContainer()
		c.Config.CDIDevices = []*runtimeapi.CDIDevice{{Name: "v/c=1"}}
		c.CDI = &CDIEdits{Hooks: &specs.Hooks{CreateContainer: []specs.Hook{{Path: "/usr/bin/hook"}}}}
		c.Image.Env = []string{"LD_PRELOAD=/evil.so"}
		if _, _, err := Build(testNode(), testPod(), c); err == nil || !strings.Contains(err.Error(), "environment") {
			t.Errorf("a hook without an environment: %v", err)
		}
	})
}
