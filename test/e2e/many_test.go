package e2e

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

// Twenty pods are made, used and removed at once; each has an address of its own, none needs a process of its own.
func TestManyPodsAtOnce(t *testing.T) {
	n := newNode(t)
	const count = 20
	var wg sync.WaitGroup
	addresses := make([]string, count)
	for i := range count {
		wg.Go(func() {
			config := n.podConfig(fmt.Sprint("pod-", i))
			resp, err := n.Runtime.RunPodSandbox(n.context(), &runtimeapi.RunPodSandboxRequest{Config: config})
			if err != nil {
				t.Errorf("running pod %d: %v", i, err)
				return
			}
			p := &pod{node: n, id: resp.GetPodSandboxId(), config: config}
			addresses[i] = p.useOnce()
			if err := n.removePod(p.id); err != nil {
				t.Errorf("removing pod %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	seen := map[string]bool{}
	for i, a := range addresses {
		if a == "" || seen[a] {
			t.Errorf("pod %d has address %q", i, a)
		}
		seen[a] = true
	}
	if got := n.SupervisorPIDs(); len(got) != 1 {
		t.Errorf("%d supervisors, want 1", len(got))
	}
}

// useOnce runs a container with an exec in it; it must not end the test, as it runs beside the test's goroutine.
func (p *pod) useOnce() (address string) {
	name := p.config.GetMetadata().GetName()
	id, err := p.tryCreate(p.containerConfig("c", "echo "+name+"; "+forever))
	if err == nil {
		_, err = p.Runtime.StartContainer(p.context(), &runtimeapi.StartContainerRequest{ContainerId: id})
	}
	if err != nil {
		p.t.Errorf("%s: %v", name, err)
		return ""
	}
	c := &container{pod: p, id: id, name: "c"}
	if resp, err := c.execSync(30, "hostname"); err != nil || strings.TrimSpace(string(resp.GetStdout())) != name {
		p.t.Errorf("%s: exec gave %q, %v", name, resp.GetStdout(), err)
	}
	resp, err := p.Runtime.PodSandboxStatus(p.context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil {
		p.t.Errorf("%s: %v", name, err)
	}
	return resp.GetStatus().GetNetwork().GetIp()
}

// Instances with other paths know nothing of one another.
func TestInstancesBesideEachOther(t *testing.T) {
	registry := harness.Registry(t)
	var nodes []*node
	var containers []*container
	for range 2 {
		n := &node{t: t, Instance: harness.New(t, harness.Config{Registry: registry})}
		n.pull(images.Busybox)
		nodes = append(nodes, n)
		c := n.runPod("same-name").run("c", forever)
		// The next instance's audit takes for its own what appears after its start, so all of this one must be there.
		n.eventually("the container has started its child", func() bool {
			resp, err := c.execSync(10, "pidof", "sleep")
			return err == nil && resp.GetExitCode() == 0
		})
		containers = append(containers, c)
	}
	a, b := containers[0], containers[1]
	if err := nodes[0].Stop(); err != nil {
		t.Fatal(err)
	}
	if got := b.exec("echo", "still here"); got != "still here\n" {
		t.Errorf("an instance after its neighbour's end: %q", got)
	}
	if err := nodes[0].StartDaemon(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := a.exec("echo", "back"); got != "back\n" {
		t.Errorf("an instance after its return: %q", got)
	}
	for i, n := range nodes {
		if got := n.listed(nil); len(got) != 1 {
			t.Errorf("instance %d lists %d pods, want its own", i, len(got))
		}
	}
}

// listen serves on a loopback port until the test ends.
func listen(t *testing.T, server *http.Server) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l) // ends with the Close below
	}()
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		<-done
	})
	return l.Addr().String()
}
