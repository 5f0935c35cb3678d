package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

func cdi(names ...string) func(*runtimeapi.ContainerConfig) {
	return func(c *runtimeapi.ContainerConfig) {
		for _, name := range names {
			c.CDIDevices = append(c.CDIDevices, &runtimeapi.CDIDevice{Name: name})
		}
	}
}

// TestCDI gives containers a device of a real spec: its node, which can be
// read by a user that is not root, a mount, a variable, a group, and a hook
// that runs on the host with no environment but its own.
func TestCDI(t *testing.T) {
	dir := t.TempDir()
	specs, driver, noted := filepath.Join(dir, "cdi"), filepath.Join(dir, "driver"), filepath.Join(dir, "noted")
	hook := filepath.Join(dir, "hook")
	for _, err := range []error{
		os.Chmod(dir, 0o755), os.Mkdir(specs, 0o755), os.Mkdir(driver, 0o755), os.WriteFile(driver+"/version", []byte("535\n"), 0o644),
		os.WriteFile(hook, []byte("#!/bin/sh\n{ echo \"$@\"; env; } > "+noted+"\n"), 0o755),
		os.WriteFile(specs+"/broken.json", []byte("{"), 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(device string) {
		spec := fmt.Sprintf(`
cdiVersion: "0.7.0"
kind: vendor.example/gpu
containerEdits:
  env: [DRIVER=535]
  hooks: [{hookName: createContainer, path: %s, args: [hook, "%s"]}]
devices:
- name: "%s"
  containerEdits:
    env: [GPU=%s, PATH=/opt/driver:/bin]
    deviceNodes: [{path: /dev/gpu0, hostPath: /dev/zero, permissions: r, fileMode: 0440}]
    mounts: [{hostPath: %s, containerPath: /opt/driver, options: [ro]}]
    additionalGids: [4444]
`, hook, device, device, device, driver)
		if err := os.WriteFile(specs+"/vendor.yaml", []byte(spec), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	n := &node{t: t, Instance: harness.New(t, harness.Config{
		Registry: harness.Registry(t), TOML: fmt.Sprintf("cdi_spec_dirs = [%q]\n", specs),
	})}
	n.pull(images.Busybox)
	p := n.runPod("pod", hostNetwork)

	_, err := p.tryCreate(p.containerConfig("early", forever, cdi("vendor.example/gpu=0")))
	wantError(t, err, codes.FailedPrecondition, `"vendor.example/gpu=0"`, specs+"/broken.json")
	write("0")
	const script = `echo $GPU $DRIVER $PATH; cat /opt/driver/version; touch /opt/driver/x || echo read-only
head -c 3 /dev/gpu0 | od -An -tx1 | tr -d ' '; echo x > /dev/gpu0 || echo no write; stat -c '%a %u %t:%T' /dev/gpu0; id -G`
	const want = "0 535 /opt/driver:/bin\n535\nread-only\n000000\nno write\n440 1001 1:5\n1001 4444\n"
	asUser := security(func(s *securityContext) { s.RunAsUser, s.RunAsGroup = id(1001), id(1001) })
	env := func(c *runtimeapi.ContainerConfig) {
		c.Envs = []*runtimeapi.KeyValue{{Key: "LD_PRELOAD", Value: []byte("/evil.so")}, {Key: "GPU", Value: []byte("of the request")}}
	}
	byAnnotation := func(c *runtimeapi.ContainerConfig) {
		c.Annotations = map[string]string{"cdi.k8s.io/vendor_1": "vendor.example/gpu=0"}
	}
	for name, ask := range map[string]func(*runtimeapi.ContainerConfig){
		"field": cdi("vendor.example/gpu=0"), "annotation": byAnnotation,
		"both": func(c *runtimeapi.ContainerConfig) {
			cdi("vendor.example/gpu=0", "vendor.example/gpu=0")(c)
			byAnnotation(c)
		},
	} {
		if got, code := p.output(name, script, asUser, env, ask); got != want || code != 0 {
			t.Errorf("by %s, exit code %d:\n%s\nwant\n%s", name, code, got, want)
		}
		got, err := os.ReadFile(noted)
		if err != nil {
			t.Errorf("by %s: the hook did not run: %v", name, err)
			continue
		}
		if !strings.HasPrefix(string(got), "0\n") || strings.Contains(string(got), "evil") || strings.Contains(string(got), "GPU") || !strings.Contains(string(got), "PATH=/usr") {
			t.Errorf("the hook has the arguments and environment\n%s", got)
		}
		if err := os.Remove(noted); err != nil {
			t.Fatal(err)
		}
	}

	write("1") // the driver has written it anew: there is no device 0 now
	_, err = p.tryCreate(p.containerConfig("late", forever, cdi("vendor.example/gpu=0")))
	wantError(t, err, codes.FailedPrecondition, `"vendor.example/gpu=0"`)
	for _, bad := range []string{"vendor.com/../x", "vendor.example/gpu", "vendor.example/gpu=../1", ""} {
		_, err = p.tryCreate(p.containerConfig("bad", forever, cdi(bad)))
		wantError(t, err, codes.InvalidArgument, bad)
	}
	pp := n.runPod("privileged", hostNetwork, func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	privileged := security(func(s *securityContext) { s.Privileged = true })
	if got, _ := pp.output("privileged", "echo $GPU; head -c 3 /dev/gpu0 | wc -c; ls /opt/driver", privileged, cdi("vendor.example/gpu=1")); got != "1\n3\nversion\n" {
		t.Errorf("privileged: %q", got)
	}
	if got, _ := p.output("plain", "echo $GPU-; ls /dev/gpu0 /opt 2>/dev/null; echo done", asUser); got != "-\ndone\n" {
		t.Errorf("a container that asks for nothing has %q", got)
	}
	// Neither the pod's annotations nor the image's say anything about devices.
	ap := n.runPod("annotated", hostNetwork, func(c *runtimeapi.PodSandboxConfig) { c.Annotations["cdi.k8s.io/x"] = "vendor.example/gpu=1" })
	if got, _ := ap.output("c", "ls /dev/gpu0 2>/dev/null; echo done"); got != "done\n" {
		t.Errorf("a pod's annotation: %q", got)
	}
	if err := os.Remove(noted); err != nil {
		t.Fatal(err)
	}
}
