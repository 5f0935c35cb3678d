package ocispec

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestSecurity: what an image's config may not do (cases 2.5 of the catalogue).
func TestSecurity(t *testing.T) {
	long := strings.Repeat("x", 2<<20)
	many := func(n int, f func(i int) string) []string {
		list := make([]string, n)
		for i := range list {
			list[i] = f(i)
		}
		return list
	}
	volumes := func(paths ...string) *imagespec.ImageConfig {
		c := &imagespec.ImageConfig{Entrypoint: []string{"/x"}, Volumes: map[string]struct{}{}}
		for _, p := range paths {
			c.Volumes[p] = struct{}{}
		}
		return c
	}
	for id, list := range map[string][]*imagespec.ImageConfig{
		"2.5-command": {
			{}, {Entrypoint: []string{""}}, {Cmd: []string{"a\x00b"}}, {Cmd: []string{long}}, {Cmd: []string{"\xff"}},
			{Cmd: many(100_000, func(int) string { return strings.Repeat("x", 100) })},
		},
		"2.5-env": {
			{Cmd: []string{"/x"}, Env: []string{"A=\x00"}}, {Cmd: []string{"/x"}, Env: []string{"A=" + long}},
			{Cmd: []string{"/x"}, Env: []string{"A\x00B=x"}}, {Cmd: []string{"/x"}, Env: []string{"A=\xff"}},
			{Cmd: []string{"/x"}, Env: many(100_000, func(i int) string { return fmt.Sprintf("V%d=%s", i, strings.Repeat("x", 100)) })},
		},
		"2.5-working-dir": {
			{Cmd: []string{"/x"}, WorkingDir: "relative"}, {Cmd: []string{"/x"}, WorkingDir: "/a/../../etc"}, {Cmd: []string{"/x"}, WorkingDir: "/a\x00"},
			{Cmd: []string{"/x"}, WorkingDir: "/proc/self/fd/7"}, {Cmd: []string{"/x"}, WorkingDir: "/proc/1/root"}, {Cmd: []string{"/x"}, WorkingDir: "/dev/fd/7"},
			{Cmd: []string{"/x"}, WorkingDir: long}, {Cmd: []string{"/x"}, WorkingDir: "/" + long},
		},
		"2.5-volumes": {
			volumes("/"), volumes(""), volumes(".."), volumes("/.."), volumes("/a/../../etc"), volumes("relative"), volumes("/proc"), volumes("/proc/self"),
			volumes("/sys"), volumes("/dev"), volumes("/dev/shm"), volumes("//dev/./x"), volumes("/a\x00b"), volumes("/" + long),
			volumes(many(10_000, func(i int) string { return fmt.Sprint("/v", i) })...),
		},
	} {
		t.Run(id, func(t *testing.T) {
			for i, image := range list {
				c := testContainer()
				c.Image, c.Volumes = *image, map[string]string{}
				for v := range image.Volumes {
					c.Volumes[v] = "/h"
				}
				_, _, err := Build(testNode(), testPod(), c)
				if !errors.Is(err, errdefs.ErrInvalidArgument) || len(err.Error()) > 8192 {
					t.Errorf("config %d: %.200v", i, err)
				}
			}
		})
	}
	t.Run("2.5-user", func(t *testing.T) {
		for _, user := range []string{long, ":" + long, "1:" + long, strings.Repeat("9", 1<<20), "a\nb", ":", "a:b:c", "99999999999", "+0"} {
			_, err := ResolveUser(nil, user, []byte(testPasswd), []byte(testGroup))
			if !errors.Is(err, errdefs.ErrInvalidArgument) || len(err.Error()) > 2048 {
				t.Errorf("%.40q: %.200v", user, err)
			}
		}
		// A name that the image has twice is its first line, and no other line makes it root.
		if u, err := ResolveUser(nil, "alice", []byte(testPasswd), nil); err != nil || u.UID != 1000 {
			t.Errorf("%v, %v", u, err)
		}
	})
	t.Run("2.5-ignored", testIgnored)
	t.Run("CVE-2026-57231", func(t *testing.T) {
		t.Setenv("A_SECRET_OF_THE_DAEMON", "secret")
		c := testContainer()
		c.Image.Env = []string{"PATH", "*", "A*", "=x", "", "A_SECRET_OF_THE_DAEMON", "LD_PRELOAD=/x.so", "B=1", "B=2"}
		spec, warnings, err := Build(testNode(), testPod(), c)
		if err != nil || len(warnings) != 6 {
			t.Fatalf("%v, %q", err, warnings)
		}
		// What is for the container's own loader stays; the last of two counts.
		want := []string{"LD_PRELOAD=/x.so", "B=2", defaultPath, "HOSTNAME=web-0"}
		if !slices.Equal(spec.Process.Env, want) {
			t.Errorf("env %q", spec.Process.Env)
		}
	})
	t.Run("CVE-2021-21334", testConfigStays)
}

// testIgnored: labels, ports, history and the like reach no spec.
func testIgnored(t *testing.T) {
	plain, _, err := Build(testNode(), testPod(), testContainer())
	if err != nil {
		t.Fatal(err)
	}
	c := testContainer()
	c.Image.Labels = map[string]string{
		"io.kubernetes.cri.sandbox-id": "x", "org.systemd.property.ExecStart": "x", "run.oci.hooks.stdout": "x",
		"org.criu.config": "/etc/shadow", "a\nb": strings.Repeat("x", 1<<20), "io.kubernetes.pod.name": "other",
	}
	c.Image.ExposedPorts = map[string]struct{}{"junk": {}, "99999999/tcp": {}, "../x": {}}
	c.Image.StopSignal = "junk"
	c.Image.User = "nobody-asked-here"
	spec, _, err := Build(testNode(), testPod(), c)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(spec, plain) || len(spec.Annotations) != 0 || spec.Hooks != nil {
		t.Errorf("the image's labels are in the spec: %v", spec.Annotations)
	}
}

// testConfigStays makes many specs of one image at once, each with its own
// environment and arguments.
func testConfigStays(t *testing.T) {
	image := imagespec.ImageConfig{
		Env:        append(make([]string, 0, 64), "PATH=/bin", "OWN=image"),
		Entrypoint: append(make([]string, 0, 64), "/bin/server"),
		Cmd:        append(make([]string, 0, 64), "a"),
		Volumes:    map[string]struct{}{"/v": {}},
	}
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			mine := fmt.Sprint("secret-", i)
			c := testContainer()
			c.Image, c.Volumes = image, map[string]string{"/v": "/h"}
			c.Config.Envs = []*runtimeapi.KeyValue{{Key: "OWN", Value: []byte(mine)}, {Key: mine, Value: []byte("x")}}
			c.Config.Args = []string{mine}
			spec, _, err := Build(testNode(), testPod(), c)
			if err != nil {
				t.Error(err)
				return
			}
			for _, s := range slices.Concat(spec.Process.Env, spec.Process.Args) {
				if strings.Contains(s, "secret-") && !strings.Contains(strings.ReplaceAll(s, "=x", ""), mine) {
					t.Errorf("%s in the container of %s", s, mine)
				}
			}
			if want := []string{"/bin/server", mine}; !slices.Equal(spec.Process.Args, want) || !slices.Contains(spec.Process.Env, "OWN="+mine) {
				t.Errorf("%q, %q", spec.Process.Args, spec.Process.Env)
			}
		})
	}
	wg.Wait()
	if !slices.Equal(image.Env[:3], []string{"PATH=/bin", "OWN=image", ""}) || !slices.Equal(image.Cmd[:2], []string{"a", ""}) || !slices.Equal(image.Entrypoint[:2], []string{"/bin/server", ""}) {
		t.Errorf("the image's config is %v now", image)
	}
}
