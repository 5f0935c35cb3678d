package e2e

import (
	"path/filepath"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A pod, or one container of it, that has all the processes that its cgroup allows: what needs one there is refused and
// names that limit; the log and attached clients go on, other pods do not notice, all of it can be stopped and removed,
// and with a higher limit all works.
func TestPidsLimit(t *testing.T) {
	for _, whose := range []string{"pod", "container"} {
		t.Run(whose, func(t *testing.T) {
			n := newNode(t)
			beside := n.runPod("beside", ownCgroup("pidsbeside")).run("c", forever)
			p := n.runPod("pod", ownCgroup("pids"))
			c, created := p.run("c", echo, interactive), p.create("created", forever)
			quits := p.run("quits", "trap 'exit 7' TERM; echo ready; while :; do read x; done", interactive)
			client := c.attach("spdy", false)
			client.send("a\n")
			client.sees(client.out, "got a\n")
			n.eventually("the trap is set", func() bool { return exists(quits.logPath()) && quits.logged("stdout") == "ready\n" })
			group := &pidsCgroup{t, filepath.Dir(c.cgroupPath("pids.max", "pids.max"))}
			if whose == "pod" {
				group.dir = filepath.Dir(group.dir)
			}
			group.write("pids.max", group.count())
			named := []string{filepath.Base(group.dir) + " has ", "pids.max"}

			// OCI runtimes join the cgroup in the middle: some execs need no more processes from there on.
			n.eventually("a command is refused", func() (refused bool) {
				errs := make([]error, 8)
				var all sync.WaitGroup
				for i := range errs {
					all.Go(func() { _, errs[i] = c.execSync(30, "true") })
				}
				all.Wait()
				for _, err := range errs {
					if err != nil {
						wantError(t, err, codes.ResourceExhausted, named...)
						refused = true
					}
				}
				return refused
			})
			if resp, err := c.execSync(30, "sh", "-c", "true & true & true & true & true & wait"); err == nil && resp.GetExitCode() == 0 {
				t.Error("a command has more processes than the limit allows")
			}
			if whose == "pod" {
				_, err := n.Runtime.StartContainer(n.context(), &runtimeapi.StartContainerRequest{ContainerId: created.id})
				wantError(t, err, codes.ResourceExhausted, named...)
				if s := created.status(); s.GetReason() != "StartError" {
					t.Errorf("not started: %v", s)
				}
				_, err = n.Runtime.RunPodSandbox(n.context(), &runtimeapi.RunPodSandboxRequest{Config: n.podConfig("init", ownCgroup("pids"), sharedPID)})
				wantError(t, err, codes.ResourceExhausted, named...)
			} else {
				created.start() // beside it
			}
			beside.exec("true")
			client.send("b\n")
			client.sees(client.out, "got b\n")
			n.eventually("the log goes on", func() bool { return c.logged("stdout") == "got a\ngot b\n" })
			if whose == "pod" {
				quits.stop(30)
				if s := quits.waitExit(); s.GetExitCode() != 7 {
					t.Errorf("ended with %v", s)
				}
				quits.remove()
				group.write("pids.max", group.count())
			}
			created.remove()

			group.write("pids.max", 1000)
			c.exec("sh", "-c", "true & true & true & true & true & wait")
			if out, code := p.output("again", "echo again"); out != "again\n" || code != 0 {
				t.Errorf("with a higher limit: %q, exit code %d", out, code)
			}
			group.write("pids.max", group.count())
			c.stop(0)
			if s := c.waitExit(); s.GetExitCode() != 137 {
				t.Errorf("stopped: %v", s)
			}
			if code := client.wait(); code != 0 {
				t.Errorf("at the container's end crictl ended with %d: %s", code, client.err)
			}
			if err := n.removePod(p.id); err != nil {
				t.Error(err)
			}
			beside.exec("true")
		})
	}
}
