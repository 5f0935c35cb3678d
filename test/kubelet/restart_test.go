package kubelet

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/images"
)

// restarts: neither a restart of the kubelet nor one of gantry touches a running pod, and both go on as if nothing had been.
func restarts(t *testing.T, n *node) {
	p := n.run(t, "steady", `
volumes: [{name: d, hostPath: {path: DIR}}]
terminationGracePeriodSeconds: 1
containers:
- {name: web, image: WEB, readinessProbe: {httpGet: {port: 80}, periodSeconds: 1, timeoutSeconds: 10}, livenessProbe: {exec: {command: ["true"]}, periodSeconds: 1, timeoutSeconds: 10}}
- name: leaves
  image: BUSYBOX
  command: [sh, -c, "while :; do for i in 1 2; do test ! -e /d/leave$i || { rm /d/leave$i; exit $i; }; done; sleep 0.1; done"]
  volumeMounts: [{name: d, mountPath: /d}]
`)
	before := p.untilReady()
	unchanged := func(when string) {
		t.Helper()
		now, was := p.untilReady().container("web"), before.container("web")
		if now.ContainerID != was.ContainerID || now.RestartCount != 0 || !now.State.Running.StartedAt.Equal(was.State.Running.StartedAt) {
			t.Errorf("%s the container is %s with %d restarts, before it was %s", when, now.ContainerID, now.RestartCount, was.ContainerID)
		}
	}
	pull(t, n, images.Demo)
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	for _, c := range p.containers("") {
		if c.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("container %s is %s without the kubelet", c.GetMetadata().GetName(), c.GetState())
		}
	}
	n.options.DiskWanted = "99.9%" // 100% would mean none
	n.start(t)
	unchanged("after the kubelet's restart")
	eventually(t, "the unused image is collected", func() error {
		if hasImage(t, n, images.Demo) {
			return fmt.Errorf("it is there")
		}
		return nil
	})
	for _, image := range []string{images.Busybox, images.Web} {
		if !hasImage(t, n, image) {
			t.Errorf("image %s is in use and has been collected", image)
		}
	}
	n.run(t, "afterkubelet", second).untilReady()
	n.blamesNobody(t)

	for i, end := range []func() error{n.gantry.Stop, n.gantry.Kill} {
		if err := end(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(p.dir, fmt.Sprintf("leave%d", i+1)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the kubelet has noticed", func() error {
			if !strings.Contains(n.unread(t), "rpc error: code = Unavailable") {
				return fmt.Errorf("its log does not say so")
			}
			return nil
		})
		if err := n.gantry.StartDaemon(context.Background()); err != nil {
			t.Fatal(err)
		}
		s := p.until("the container that left is back", func(s podStatus) bool {
			c := s.container("leaves")
			return c.RestartCount == i+1 && c.State.Running != nil && s.ready()
		})
		if got := s.container("leaves").LastState.Terminated; got == nil || got.ExitCode != i+1 {
			t.Errorf("what left while gantry was away ended with %+v, want %d", got, i+1)
		}
		unchanged("after gantry's return")
		n.run(t, fmt.Sprintf("aftergantry%d", i), second).untilReady()
		n.forgiveUnavailable(t)
	}
}

const second = `
terminationGracePeriodSeconds: 1
containers: [{name: a, image: BUSYBOX, command: [sleep, "1000"]}]
`

func pull(t *testing.T, n *node, image string) {
	t.Helper()
	ctx, cancel := criContext()
	defer cancel()
	if _, err := n.gantry.Image.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: image}}); err != nil {
		t.Fatal(err)
	}
}

func hasImage(t *testing.T, n *node, image string) bool {
	t.Helper()
	ctx, cancel := criContext()
	defer cancel()
	resp, err := n.gantry.Image.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: image}})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetImage() != nil
}
