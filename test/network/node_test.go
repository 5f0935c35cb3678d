package network

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
	"github.com/gantry-cri/gantry/test/images/peer"
	"github.com/gantry-cri/gantry/test/killpoint"
)

func TestMain(m *testing.M) {
	killpoint.Main()
	harness.Main(m)
}

// node is an instance, with the short forms that tests talk to it with.
type node struct {
	*harness.Instance
	t testing.TB
}

// dual is the default network of most tests: a pod has an address of each family.
const dual = "10.212.0.0/24,fd00:212::/64"

func newNode(t testing.TB, cfg harness.Config) *node {
	t.Helper()
	harness.Require(t)
	cfg.Registry = harness.Registry(t)
	return &node{Instance: harness.New(t, cfg), t: t}
}

// in is the node for a subtest.
func (n *node) in(t testing.TB) *node { return &node{Instance: n.Instance, t: t} }

// context bounds a single request, clean-up included; no test needs as long for one.
func (n *node) context() context.Context {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(n.t.Context()), time.Minute)
	n.t.Cleanup(cancel)
	return ctx
}

func (n *node) pull() {
	n.t.Helper()
	if _, err := n.Image.PullImage(n.context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: images.Web}}); err != nil {
		n.t.Fatal(err)
	}
}

type podChange func(*runtimeapi.PodSandboxConfig)

func podConfig(n *node, name string, change ...podChange) *runtimeapi.PodSandboxConfig {
	c := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Uid: "uid-" + name, Namespace: "net"},
		Hostname: name, LogDirectory: filepath.Join(n.LogDir, name),
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}}},
	}
	for _, f := range change {
		f(c)
	}
	return c
}

func hostNetwork(c *runtimeapi.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
}

func userNamespace(c *runtimeapi.PodSandboxConfig) {
	ids := []*runtimeapi.IDMapping{{HostId: 100_000, Length: 65536}}
	c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}
}

func ports(list ...*runtimeapi.PortMapping) podChange {
	return func(c *runtimeapi.PodSandboxConfig) { c.PortMappings = list }
}

func port(protocol runtimeapi.Protocol, host, container int32, hostIP string) *runtimeapi.PortMapping {
	return &runtimeapi.PortMapping{Protocol: protocol, HostPort: host, ContainerPort: container, HostIp: hostIP}
}

type pod struct {
	*node
	id     string
	config *runtimeapi.PodSandboxConfig
	peer   string // container
}

func (n *node) try(name string, change ...podChange) (*pod, error) {
	p := &pod{node: n, config: podConfig(n, name, change...)}
	resp, err := n.Runtime.RunPodSandbox(n.context(), &runtimeapi.RunPodSandboxRequest{Config: p.config})
	p.id = resp.GetPodSandboxId()
	return p, err
}

// pod makes a pod that is removed at the end of the test.
func (n *node) pod(name string, change ...podChange) *pod {
	n.t.Helper()
	p, err := n.try(name, change...)
	if err != nil {
		n.t.Fatalf("running pod %s: %v", name, err)
	}
	n.t.Cleanup(func() {
		if err := p.remove(); err != nil {
			n.t.Errorf("removing pod %s: %v", name, err)
		}
	})
	return p
}

func (p *pod) stop() error {
	_, err := p.Runtime.StopPodSandbox(p.context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id})
	return err
}

func (p *pod) remove() error {
	if err := p.stop(); err != nil {
		return err
	}
	_, err := p.Runtime.RemovePodSandbox(p.context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id})
	return err
}

// ips are the pod's addresses as the kubelet learns them.
func (p *pod) ips() (ips []netip.Addr) {
	p.t.Helper()
	resp, err := p.Runtime.PodSandboxStatus(p.context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil {
		p.t.Error(err)
	}
	network := resp.GetStatus().GetNetwork()
	all := []string{network.GetIp()}
	for _, a := range network.GetAdditionalIps() {
		all = append(all, a.GetIp())
	}
	for _, a := range all {
		if a != "" {
			ips = append(ips, netip.MustParseAddr(a))
		}
	}
	return ips
}

// serve starts a peer in the pod, which answers at these addresses, or else at port 80 of both families.
func (p *pod) serve(addresses ...string) *pod {
	p.t.Helper()
	if len(addresses) == 0 {
		addresses = []string{"[::]:80"}
	}
	created, err := p.Runtime.CreateContainer(p.context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, SandboxConfig: p.config,
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "peer"}, LogPath: "peer.log",
			Image:   &runtimeapi.ImageSpec{Image: images.Web, UserSpecifiedImage: images.Web},
			Command: append([]string{"/nginx", "peer"}, addresses...),
			Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: p.config.GetLinux().GetSecurityContext().GetNamespaceOptions()}},
		}})
	if err != nil {
		p.t.Fatal(err)
	}
	p.peer = created.GetContainerId()
	if _, err := p.Runtime.StartContainer(p.context(), &runtimeapi.StartContainerRequest{ContainerId: p.peer}); err != nil {
		p.t.Fatal(err)
	}
	return p
}

func (p *pod) exec(argv ...string) string {
	p.t.Helper()
	resp, err := p.Runtime.ExecSync(p.context(), &runtimeapi.ExecSyncRequest{ContainerId: p.peer, Cmd: argv, Timeout: 30})
	if err != nil || resp.GetExitCode() != 0 {
		p.t.Fatalf("exec %q in pod %s: exit code %d, stderr %q, %v", argv, p.config.GetMetadata().GetName(), resp.GetExitCode(), resp.GetStderr(), err)
	}
	return string(resp.GetStdout())
}

// patience is how long a peer is waited for that is to answer; one that is not is waited for as long as impatience.
const (
	patience   = 30 * time.Second
	impatience = 700 * time.Millisecond
)

// asker answers questions (see [peer.Answer]) from some place in the network.
type asker func(limit time.Duration, questions []string) []string

// ask is the asker in the pod.
func (p *pod) ask(limit time.Duration, questions []string) []string {
	p.t.Helper()
	return strings.Split(strings.TrimSuffix(p.exec(append([]string{"/nginx", "ask", limit.String()}, questions...)...), "\n"), "\n")
}

// here is the asker in the network namespace of the calling thread.
func here(limit time.Duration, questions []string) (answers []string) {
	for _, q := range questions {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		answers = append(answers, peer.Answer(ctx, q))
		cancel()
	}
	return answers
}

// outside makes the other host. It has to be there before the node is.
func outside(t testing.TB) (*harness.Outside, asker) {
	t.Helper()
	harness.Require(t)
	o, err := harness.NewOutside()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	})
	return o, func(limit time.Duration, questions []string) (answers []string) {
		if err := o.Do(func() error { answers = here(limit, questions); return nil }); err != nil {
			t.Error(err)
		}
		return answers
	}
}

// serve answers at addresses in the namespace of the calling thread until the test ends.
func serve(t testing.TB, addresses ...string) error {
	stop, err := peer.Serve(addresses...)
	if err != nil {
		return fmt.Errorf("serving at %v: %w", addresses, err)
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return nil
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// serving waits until the peers answer over TCP, and so everywhere: see [peer.Serve].
func (n *node) serving(addresses ...netip.AddrPort) {
	n.t.Helper()
	for _, a := range addresses {
		n.eventually("a peer serves at "+a.String(), func() bool {
			return here(impatience, []string{peer.Question("tcp", a)})[0] != peer.Refused
		})
	}
}

// eventually polls until the condition holds; the bound only decides when a broken test gives up.
func (n *node) eventually(what string, condition func() bool) {
	n.t.Helper()
	for deadline := time.Now().Add(time.Minute); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			n.t.Fatalf("waited in vain until %s", what)
		}
	}
}
