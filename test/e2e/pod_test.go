package e2e

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/images"
)

// listed returns the ids of the pods that a filter lets through.
func (n *node) listed(f *runtimeapi.PodSandboxFilter) []string {
	n.t.Helper()
	resp, err := n.Runtime.ListPodSandbox(n.context(), &runtimeapi.ListPodSandboxRequest{Filter: f})
	if err != nil {
		n.t.Fatal(err)
	}
	var ids []string
	for _, p := range resp.GetItems() {
		ids = append(ids, p.GetId())
	}
	return ids
}

func TestPodLifecycle(t *testing.T) {
	n := newNode(t)
	began := time.Now().UnixNano()
	p, other := n.runPod("first"), n.runPod("second")

	s := p.status()
	if s.GetState() != runtimeapi.PodSandboxState_SANDBOX_READY || s.GetMetadata().GetUid() != "uid-first" ||
		s.GetLabels()["app"] != "first" || s.GetAnnotations()["e2e/note"] != "kept" || s.GetCreatedAt() < began || s.GetCreatedAt() > time.Now().UnixNano() {
		t.Errorf("status of a new pod: %v", s)
	}
	if net.ParseIP(s.GetNetwork().GetIp()) == nil || s.GetNetwork().GetIp() == other.status().GetNetwork().GetIp() {
		t.Errorf("address of a new pod: %q, of another: %q", s.GetNetwork().GetIp(), other.status().GetNetwork().GetIp())
	}

	ready := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}
	for _, f := range []*runtimeapi.PodSandboxFilter{{Id: p.id}, {Id: p.id[:12]}, {LabelSelector: map[string]string{"app": "first"}},
		{Id: p.id, State: ready, LabelSelector: map[string]string{"app": "first"}}} {
		if got := n.listed(f); !slices.Equal(got, []string{p.id}) {
			t.Errorf("filter %v: got %v, want %s", f, got, p.id)
		}
	}
	for _, f := range []*runtimeapi.PodSandboxFilter{{Id: "0000"}, {LabelSelector: map[string]string{"app": "none"}}, {Id: p.id, LabelSelector: map[string]string{"app": "second"}}} {
		if got := n.listed(f); len(got) != 0 {
			t.Errorf("filter %v: got %v, want none", f, got)
		}
	}

	again, err := n.Runtime.RunPodSandbox(n.context(), &runtimeapi.RunPodSandboxRequest{Config: p.config})
	if err != nil || again.GetPodSandboxId() != p.id {
		t.Errorf("a repeated RunPodSandbox gave %q, %v; want the first pod %s", again.GetPodSandboxId(), err, p.id)
	}

	for range 2 { // the second stop changes nothing
		if _, err := n.Runtime.StopPodSandbox(n.context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
			t.Fatal(err)
		}
		if s := p.status(); s.GetState() != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
			t.Errorf("state of a stopped pod: %s", s.GetState())
		}
	}
	if got := n.listed(&runtimeapi.PodSandboxFilter{State: ready}); !slices.Equal(got, []string{other.id}) {
		t.Errorf("ready pods: %v, want %s", got, other.id)
	}
	for range 2 {
		if _, err := n.Runtime.RemovePodSandbox(n.context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
			t.Fatal(err)
		}
	}
	_, err = n.Runtime.PodSandboxStatus(n.context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id})
	wantError(t, err, codes.NotFound, p.id)
}

func TestContainerLifecycle(t *testing.T) {
	n := newNode(t)
	p := n.runPod("pod")
	const script = "trap exit TERM; echo ready; while :; do sleep 1000 & wait; done"
	c := p.create("main", script)
	if s := c.status(); s.GetState() != runtimeapi.ContainerState_CONTAINER_CREATED || s.GetCreatedAt() == 0 || s.GetStartedAt() != 0 ||
		s.GetImage().GetImage() != images.Busybox || s.GetLogPath() != c.logPath() || s.GetLabels()["container"] != "main" {
		t.Errorf("status of a created container: %v", s)
	}
	if id, err := p.tryCreate(p.containerConfig("main", script)); err != nil || id != c.id {
		t.Errorf("a repeated CreateContainer gave %q, %v; want the first container %s", id, err, c.id)
	}
	c.start()
	if s := c.status(); s.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING || s.GetStartedAt() < s.GetCreatedAt() {
		t.Errorf("status of a running container: %v", s)
	}
	_, err := n.Runtime.StartContainer(n.context(), &runtimeapi.StartContainerRequest{ContainerId: c.id})
	wantError(t, err, codes.FailedPrecondition, c.id)

	for _, f := range []*runtimeapi.ContainerFilter{{Id: c.id}, {PodSandboxId: p.id}, {LabelSelector: map[string]string{"container": "main"}},
		{State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}}} {
		resp, err := n.Runtime.ListContainers(n.context(), &runtimeapi.ListContainersRequest{Filter: f})
		if err != nil || len(resp.GetContainers()) != 1 || resp.GetContainers()[0].GetId() != c.id {
			t.Errorf("filter %v: got %v, %v", f, resp.GetContainers(), err)
		}
	}

	n.eventually("the trap is set", func() bool { return strings.Contains(c.logged("stdout"), "ready") })
	c.stop(10)
	c.stop(10)
	if s := c.status(); s.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED || s.GetFinishedAt() < s.GetStartedAt() || s.GetExitCode() != 143 || s.GetReason() != "Error" {
		t.Errorf("status after a stop by SIGTERM: %v", s)
	}
	c.remove()
	c.remove()
	_, err = n.Runtime.ContainerStatus(n.context(), &runtimeapi.ContainerStatusRequest{ContainerId: c.id})
	wantError(t, err, codes.NotFound, c.id)
}

func TestExitCodesAndReasons(t *testing.T) {
	n := newNode(t)
	p := n.runPod("pod")
	for i, want := range []struct {
		script, reason string
		code           int32
	}{{"true", "Completed", 0}, {"exit 3", "Error", 3}, {forever, "Error", 137}} {
		c := p.run(fmt.Sprint("c", i), want.script)
		if want.script == forever {
			c.stop(0)
		}
		if s := c.waitExit(); s.GetExitCode() != want.code || s.GetReason() != want.reason || s.GetFinishedAt() < s.GetStartedAt() {
			t.Errorf("%s: code %d, reason %q; want %d, %q", want.script, s.GetExitCode(), s.GetReason(), want.code, want.reason)
		}
	}
	ignoring := p.run("ignoring", "trap '' TERM; echo ready; while :; do sleep 1; done")
	n.eventually("the trap is set", func() bool { return strings.Contains(ignoring.logged("stdout"), "ready") })
	ignoring.stop(1)
	if s := ignoring.status(); s.GetExitCode() != 137 {
		t.Errorf("a container that ignores SIGTERM ended with %d, want 137", s.GetExitCode())
	}
}

func TestPodFilesAndNames(t *testing.T) {
	n := newNode(t)
	p := n.runPod("web-0", func(c *runtimeapi.PodSandboxConfig) {
		c.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: []string{"e2e.svc.cluster.local"}, Options: []string{"ndots:5"}}
		c.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "80", "kernel.shm_rmid_forced": "1"}
	})
	a := p.run("a", "echo shared > /dev/shm/note; "+forever)
	b := p.run("b", forever)
	for argv, want := range map[string]string{
		"hostname":             "web-0\n",
		"cat /etc/hostname":    "web-0\n",
		"cat /etc/resolv.conf": "search e2e.svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n",
		"cat /proc/sys/net/ipv4/ip_unprivileged_port_start": "80\n",
		"cat /proc/sys/kernel/shm_rmid_forced":              "1\n",
		"stat -c %a,%u /dev/shm":                            "1777,0\n",
	} {
		if got := a.exec(strings.Fields(argv)...); got != want {
			t.Errorf("%s: got %q, want %q", argv, got, want)
		}
	}
	n.eventually("both containers share /dev/shm", func() bool {
		resp, err := b.execSync(10, "cat", "/dev/shm/note")
		return err == nil && string(resp.GetStdout()) == "shared\n"
	})
	if ip := p.status().GetNetwork().GetIp(); !strings.Contains(a.exec("ip", "-4", "addr"), ip+"/") || a.exec("ip", "-4", "addr") != b.exec("ip", "-4", "addr") {
		t.Errorf("the containers are not both at the pod's address %s", ip)
	}
}

func TestHostNetwork(t *testing.T) {
	n := newNode(t)
	p := n.runPod("hostnet", hostNetwork)
	c := p.run("c", forever)
	host, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(c.exec("readlink", "/proc/self/ns/net")); got != host {
		t.Errorf("network namespace %s, want the host's %s", got, host)
	}
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(c.exec("hostname")); got != name {
		t.Errorf("hostname %q, want the host's %q", got, name)
	}
	if ip := p.status().GetNetwork().GetIp(); ip != "" {
		t.Errorf("a host-network pod reports address %s", ip)
	}
}

func TestSharedPIDNamespace(t *testing.T) {
	n := newNode(t)
	p := n.runPod("shared", sharedPID)
	a, b := p.run("a", "exec sleep 4321"), p.run("b", forever)
	if got := b.exec("pidof", "sleep"); strings.TrimSpace(got) == "" {
		t.Error("a container does not see its sibling's process")
	}
	if a.exec("readlink", "/proc/self/ns/pid") != b.exec("readlink", "/proc/self/ns/pid") {
		t.Error("the containers' PID namespaces differ")
	}
	if got := b.exec("cat", "/proc/1/cmdline"); strings.Contains(got, "4321") {
		t.Errorf("process 1 is a container's: %q", got)
	}
	// An orphan's zombie is reaped by process 1, or the pod's pid space fills up.
	b.exec("sh", "-c", "(sleep 0.05 &) ; true")
	n.eventually("orphans are reaped", func() bool { return !strings.Contains(b.exec("sh", "-c", "cat /proc/[0-9]*/stat"), ") Z ") })
}

// gateway is the node as a pod sees it.
func gateway(t *testing.T, c *container) string {
	t.Helper()
	fields := strings.Fields(c.exec("ip", "route"))
	if i := slices.Index(fields, "via"); i >= 0 && i+1 < len(fields) {
		return fields[i+1]
	}
	t.Fatalf("no default route: %v", fields)
	return ""
}
