package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

// Each bad input has an error that names it; that nothing is left behind is checked when the instance ends.

func TestBadConfigKey(t *testing.T) {
	harness.Require(t)
	dir := t.TempDir()
	config := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(config, []byte("# a comment\nno_such_key = true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := harness.Gantry(ctx, "serve", "--config", config, "--root", dir+"/root", "--run", dir+"/run", "--socket", dir+"/run/s.sock")
	if err == nil || ctx.Err() != nil {
		t.Errorf("gantry serve with an unknown key: %v", err)
	}
	for _, want := range []string{config, "no_such_key", "2"} {
		if !strings.Contains(out, want) {
			t.Errorf("the error does not name %q: %s", want, out)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind in %s: %v, %v", dir, entries, err)
	}
}

func TestMissingRuntimeBinary(t *testing.T) {
	const missing = "/no/such/runtime"
	n := newNode(t, "--runtime", "missing="+missing)
	_, err := n.Runtime.RunPodSandbox(n.context(), &runtimeapi.RunPodSandboxRequest{Config: n.podConfig("pod"), RuntimeHandler: "missing"})
	if err == nil || !strings.Contains(err.Error(), missing) {
		t.Errorf("a pod of a handler without binary: %v", err)
	}
	n.runPod("other").run("c", forever) // the other handler is not affected
}

func TestUnknownHandler(t *testing.T) {
	n := newNode(t)
	_, err := n.Runtime.RunPodSandbox(n.context(), &runtimeapi.RunPodSandboxRequest{Config: n.podConfig("pod"), RuntimeHandler: "no-such-handler"})
	wantError(t, err, codes.InvalidArgument, "no-such-handler", "runc")
}

func TestMalformedReference(t *testing.T) {
	n := newNode(t)
	for _, ref := range []string{"UPPER/Case", "registry.k8s.io/x:", "registry.k8s.io/x@sha256:12", "", "a b", strings.Repeat("x", 5000)} {
		_, err := n.Image.PullImage(n.context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
		wantError(t, err, codes.InvalidArgument, ref[:min(len(ref), 64)])
	}
	p := n.runPod("pod")
	_, err := p.tryCreate(p.containerConfig("c", forever, func(c *runtimeapi.ContainerConfig) { c.Image.Image = "registry.k8s.io/not-pulled:1" }))
	wantError(t, err, codes.FailedPrecondition, "registry.k8s.io/not-pulled:1")
}

func TestBadLogPath(t *testing.T) {
	n := newNode(t)
	p := n.runPod("pod")
	outside := filepath.Join(n.LogDir, "escaped.log")
	for _, path := range []string{"../escaped.log", "a/../../escaped.log", outside} {
		_, err := p.tryCreate(p.containerConfig("c", forever, func(c *runtimeapi.ContainerConfig) { c.LogPath = path }))
		wantError(t, err, codes.InvalidArgument, path)
	}
	if _, err := os.Lstat(outside); err == nil {
		t.Errorf("%s was made", outside)
	}
	// A link that a pod has planted in its log folder leads nowhere either.
	if err := os.Symlink(n.Dir, filepath.Join(p.config.GetLogDirectory(), "planted")); err != nil {
		t.Fatal(err)
	}
	c := p.containerConfig("planted", "echo hello", func(c *runtimeapi.ContainerConfig) { c.LogPath = "planted/escaped.log" })
	id, err := p.tryCreate(c)
	if err == nil {
		_, err = n.Runtime.StartContainer(n.context(), &runtimeapi.StartContainerRequest{ContainerId: id})
	}
	if err == nil {
		t.Error("a container logs through a symbolic link")
	}
	if _, err := os.Lstat(filepath.Join(n.Dir, "escaped.log")); err == nil {
		t.Error("a log file was made outside the pod's log folder")
	}
}

func TestContainerInStoppedPod(t *testing.T) {
	n := newNode(t)
	p := n.runPod("pod")
	created := p.create("created", forever)
	if _, err := n.Runtime.StopPodSandbox(n.context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Fatal(err)
	}
	_, err := p.tryCreate(p.containerConfig("late", forever))
	wantError(t, err, codes.FailedPrecondition, p.id)
	_, err = n.Runtime.StartContainer(n.context(), &runtimeapi.StartContainerRequest{ContainerId: created.id})
	wantError(t, err, codes.FailedPrecondition)
	gone := &pod{node: n, id: strings.Repeat("0", 64), config: p.config}
	_, err = gone.tryCreate(p.containerConfig("late", forever))
	wantError(t, err, codes.NotFound, gone.id)
}

func TestBadContainers(t *testing.T) {
	n := newNode(t)
	p := n.runPod("pod")
	for name, bad := range map[string]struct {
		change func(*runtimeapi.ContainerConfig)
		names  string
	}{
		"unknown capability": {security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NO_SUCH_CAP"}}
		}), "NO_SUCH_CAP"},
		"unknown user": {security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUsername = "no-such-user" }), "no-such-user"},
		"missing seccomp profile": {security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/no/such/profile.json"}
		}), "/no/such/profile.json"},
		"relative mount": {func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{HostPath: "relative", ContainerPath: "/x"}}
		}, "relative"},
		"missing device": {func(c *runtimeapi.ContainerConfig) {
			c.Devices = []*runtimeapi.Device{{HostPath: "/dev/no-such-device", ContainerPath: "/dev/x", Permissions: "rw"}}
		}, "/dev/no-such-device"},
		"missing program": {func(c *runtimeapi.ContainerConfig) { c.Command = []string{"/no/such/program"} }, "/no/such/program"},
	} {
		id, err := p.tryCreate(p.containerConfig("bad", forever, bad.change))
		if err == nil { // some of these only the kernel can tell
			_, err = n.Runtime.StartContainer(n.context(), &runtimeapi.StartContainerRequest{ContainerId: id})
			(&container{pod: p, id: id, name: "bad"}).remove()
		}
		if err == nil || !strings.Contains(err.Error(), bad.names) {
			t.Errorf("%s: the error does not name %s: %v", name, bad.names, err)
		}
	}
	_, err := n.Image.PullImage(n.context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "registry.k8s.io/no-such-image:1"}})
	wantError(t, err, codes.NotFound, "registry.k8s.io/no-such-image:1")
	if _, err := n.Image.ImageStatus(n.context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: images.Busybox}}); err != nil {
		t.Error(err)
	}
}
