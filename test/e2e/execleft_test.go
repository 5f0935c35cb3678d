package e2e

import (
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
)

// What an exec has started is killed by the next supervisor when its own was killed; the container runs on.
func TestExecOfAKilledSupervisor(t *testing.T) {
	for name, flags := range handlers(t) {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, flags...)
			c := n.runPod("pod").run("c", forever)
			ended := make(chan error, 1)
			go func() {
				_, err := c.execSync(60, "sleep", "4242")
				ended <- err
			}()
			sleeps := func() bool { return strings.Contains(c.exec("ps"), "sleep 4242") }
			c.eventually("it runs", sleeps)
			pid := c.pid()
			kill(t, n.SupervisorPIDs()...)
			if err := <-ended; err == nil {
				t.Error("the exec had an end of its own")
			}
			c.eventually("it is killed", func() bool { return !sleeps() })
			if got := c.pid(); got != pid {
				t.Errorf("the container is process %d, was %d", got, pid)
			}
			kill(t, pid)
			c.eventually("the container has ended", func() bool {
				harness.Reap() // the test's process is its parent now
				return c.status().GetState() == runtimeapi.ContainerState_CONTAINER_EXITED
			})
		})
	}
}
