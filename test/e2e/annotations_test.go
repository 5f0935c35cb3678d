package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

// TestAnnotations: config.json has the annotations that the handler's list
// names and no other; the CRI shows those of the request byte for byte.
func TestAnnotations(t *testing.T) {
	n := &node{t: t, Instance: harness.New(t, harness.Config{Registry: harness.Registry(t), TOML: fmt.Sprintf(`
[runtimes.listed]
path = %q
annotations = ["vendor.example/*", "exact.example/one"]
`, runc(t))})}
	n.pull(images.Busybox)
	asked := map[string]string{
		"vendor.example/mode": "fast", "vendor.examplex/mode": "no", "exact.example/one": "1", "exact.example/one.more": "2",
		"org.systemd.property.ExecStartPre": "'/bin/touch /pwned'", "run.oci.handler": "krun", "org.criu.config": "/etc/shadow", "io.kubernetes.container.hash": "7\n\xc3\xa4",
	}
	annotated := func(c *runtimeapi.PodSandboxConfig) {
		c.Annotations = map[string]string{"vendor.example/mode": "slow", "vendor.example/pod": "p", "exact.example/two": "no"}
	}
	for handler, want := range map[string]map[string]any{
		"":       nil,
		"listed": {"vendor.example/mode": "fast", "vendor.example/pod": "p", "exact.example/one": "1"},
	} {
		p, err := n.podOf("pod-"+handler+"x", handler, hostNetwork, annotated)
		if err != nil {
			t.Fatal(err)
		}
		c := p.run("c", forever, func(c *runtimeapi.ContainerConfig) { c.Annotations = asked })
		got, _ := c.info().RuntimeSpec["annotations"].(map[string]any)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("handler %q (-want +got)\n%s", handler, diff)
		}
		if diff := cmp.Diff(asked, c.status().GetAnnotations()); diff != "" {
			t.Errorf("status (-want +got)\n%s", diff)
		}
		list, err := n.Runtime.ListContainers(n.context(), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{Id: c.id}})
		if err != nil || len(list.GetContainers()) != 1 || cmp.Diff(asked, list.GetContainers()[0].GetAnnotations()) != "" {
			t.Errorf("listed as %v, %v", list, err)
		}
		if diff := cmp.Diff(p.config.GetAnnotations(), p.status().GetAnnotations()); diff != "" {
			t.Errorf("pod (-want +got)\n%s", diff)
		}
		if handler != "listed" {
			continue
		}
		long := strings.Repeat("x", 65<<10)
		_, err = p.tryCreate(p.containerConfig("long", forever, func(c *runtimeapi.ContainerConfig) {
			c.Annotations = map[string]string{"vendor.example/mode": long}
		}))
		wantError(t, err, codes.InvalidArgument, "annotations", `"vendor.example/mode"`)
	}
}
