package e2e

import (
	"os"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// No OCI runtime gets the host's /dev/null as a standard file: crun gives those
// to the container's user, who could then close it to the whole host.
func TestNullDevice(t *testing.T) {
	for name, flags := range handlers(t) {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, flags...)
			look := func(after string) {
				t.Helper()
				if got := owner(t, os.DevNull); got != "0:0" {
					t.Errorf("after %s the host's /dev/null belongs to %s", after, got)
					if err := os.Chown(os.DevNull, 0, 0); err != nil {
						t.Error(err)
					}
				}
			}
			asUser := security(func(s *securityContext) { s.RunAsUser = &runtimeapi.Int64Value{Value: 1000} })
			for pod, change := range map[string]func(*runtimeapi.PodSandboxConfig){
				"plain": func(*runtimeapi.PodSandboxConfig) {}, "mapped": userns(100_000, 100_000),
			} {
				p := n.runPod(pod, change)
				for what, change := range map[string]func(*runtimeapi.ContainerConfig){
					"log":      func(*runtimeapi.ContainerConfig) {},
					"no-log":   func(c *runtimeapi.ContainerConfig) { c.LogPath = "" },
					"terminal": func(c *runtimeapi.ContainerConfig) { c.Tty = true },
				} {
					c := p.run(what, forever, asUser, change)
					look("the start of " + pod + "/" + what)
					if got := c.exec("sh", "-c", "cat; cat < /dev/stdin; echo x > /dev/null && id -u"); got != "1000\n" {
						t.Errorf("%s/%s: %q", pod, what, got)
					}
					look("an exec in " + pod + "/" + what)
				}
			}
		})
	}
}
