package e2e

import (
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// inPIDOf makes a container share the PID namespace of another one, as ephemeral containers do.
func inPIDOf(id string) func(*securityContext) {
	return func(s *securityContext) {
		s.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: id}
	}
}

func TestTargetPIDNamespace(t *testing.T) {
	n := newNode(t)
	p, other := n.runPod("pod"), n.runPod("other")
	target := p.run("target", "exec sleep 4321")
	bystander := other.run("bystander", forever)

	// Created, then the daemon is replaced, then started.
	c := p.create("debugger", forever, security(inPIDOf(target.id)))
	if err := n.Restart(n.context()); err != nil {
		t.Fatal(err)
	}
	c.start()
	if got, want := c.exec("readlink", "/proc/self/ns/pid"), target.exec("readlink", "/proc/self/ns/pid"); got != want {
		t.Errorf("PID namespace %s, want the target's %s", got, want)
	}
	if got := c.exec("cat", "/proc/1/cmdline"); !strings.HasPrefix(got, "sleep\x004321") {
		t.Errorf("process 1 is %q, not the target's", got)
	}

	_, err := p.tryCreate(p.containerConfig("foreign", forever, security(inPIDOf(bystander.id))))
	wantError(t, err, codes.InvalidArgument, "target_id", bystander.id)
	_, err = p.tryCreate(p.containerConfig("unknown", forever, security(inPIDOf("0123456789"))))
	wantError(t, err, codes.InvalidArgument, "target_id", "0123456789")
	_, err = p.tryCreate(p.containerConfig("unnamed", forever, security(inPIDOf(""))))
	wantError(t, err, codes.InvalidArgument, "target_id")

	late := p.create("late", forever, security(inPIDOf(target.id)))
	target.stop(0)
	target.waitExit()
	_, err = n.Runtime.StartContainer(n.context(), &runtimeapi.StartContainerRequest{ContainerId: late.id})
	wantError(t, err, codes.FailedPrecondition, "target_id", target.id, "not running")
	_, err = p.tryCreate(p.containerConfig("too-late", forever, security(inPIDOf(target.id))))
	wantError(t, err, codes.FailedPrecondition, "target_id", target.id, "not running")
	target.remove()
	_, err = n.Runtime.StartContainer(n.context(), &runtimeapi.StartContainerRequest{ContainerId: late.id})
	wantError(t, err, codes.FailedPrecondition, "target_id", target.id)
}

// The host's PID and IPC namespaces, and those of its network, go to whoever asks for them and to nobody else.
func TestHostNamespaces(t *testing.T) {
	n := newNode(t)
	host := func(kind string) string {
		ns, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			t.Fatal(err)
		}
		return ns
	}
	for name, row := range map[string]struct {
		change func(*runtimeapi.PodSandboxConfig)
		shared []string
	}{
		"own": {func(*runtimeapi.PodSandboxConfig) {}, nil},
		"hostpid": {func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_NODE
		}, []string{"pid"}},
		"hostipc": {hostIPC, []string{"ipc"}},
		"hostnet": {hostNetwork, []string{"net", "uts"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := n.runPod(name, row.change).in(t)
			c := p.run("c", forever)
			for _, kind := range []string{"pid", "ipc", "net", "uts", "mnt"} {
				want := slices.Contains(row.shared, kind)
				if got := strings.TrimSpace(c.exec("readlink", "/proc/self/ns/"+kind)); (got == host(kind)) != want {
					t.Errorf("%s namespace %s, the host's is %s; shared: %v", kind, got, host(kind), want)
				}
			}
			options := p.status().GetLinux().GetNamespaces().GetOptions()
			if want := p.config.GetLinux().GetSecurityContext().GetNamespaceOptions(); options.String() != want.String() {
				t.Errorf("the pod's status has the namespace options %v, want %v", options, want)
			}
		})
	}
	p := n.runPod("plain")
	for _, opts := range []*runtimeapi.NamespaceOption{
		{Pid: runtimeapi.NamespaceMode_NODE}, {Pid: runtimeapi.NamespaceMode_CONTAINER, Ipc: runtimeapi.NamespaceMode_NODE},
		{Pid: runtimeapi.NamespaceMode_CONTAINER, Network: runtimeapi.NamespaceMode_NODE}, {Pid: runtimeapi.NamespaceMode_POD},
	} {
		_, err := p.tryCreate(p.containerConfig("bad", forever, security(func(s *securityContext) { s.NamespaceOptions = opts })))
		wantError(t, err, codes.InvalidArgument, "namespace_options")
	}
}
