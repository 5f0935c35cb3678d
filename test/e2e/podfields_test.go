package e2e

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// on is the node for a sub-test.
func (n *node) on(t *testing.T) *node { return &node{Instance: n.Instance, t: t} }

// subtests runs the sub-tests at once on one instance.
func subtests(t *testing.T, n *node, all map[string]func(*node)) {
	t.Helper()
	for name, f := range all {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f(n.on(t))
		})
	}
}

// tryRunPod makes a pod that is wanted to be refused.
func (n *node) tryRunPod(name string, change ...func(*runtimeapi.PodSandboxConfig)) error {
	resp, err := n.Runtime.RunPodSandbox(n.context(), &runtimeapi.RunPodSandboxRequest{Config: n.podConfig(name, change...)})
	if err == nil {
		_ = n.removePod(resp.GetPodSandboxId()) // the caller fails in any case
	}
	return err
}

// listedPod is the pod as a list shows it.
func (p *pod) listedPod() *runtimeapi.PodSandbox {
	p.t.Helper()
	resp, err := p.Runtime.ListPodSandbox(p.context(), &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{Id: p.id}})
	if err != nil || len(resp.GetItems()) != 1 {
		p.t.Fatalf("listing pod %s: %v, %v", p.id, resp.GetItems(), err)
	}
	return resp.GetItems()[0]
}

// anyText is labels or annotations that nothing may change: long ones, empty ones, and what a parser might trip over.
func anyText() map[string]string {
	return map[string]string{
		"plain": "value", "": "empty key", "empty": "", "io.kubernetes.container.hash": "a\nb\tc\x7f", "ключ/ü": "значение \U0001f433",
		"large": strings.Repeat("0123456789abcdef", 1<<16), "quote\"": `{"a": "\u0000"}`, "gantry.dev/x": "y", "..": "/etc/passwd",
	}
}

func TestPodFields(t *testing.T) {
	n := newNode(t)
	hostName, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	subtests(t, n, map[string]func(*node){
		"hostname": func(n *node) {
			long := strings.Repeat("a", 32) + "." + strings.Repeat("b", 31) // 64 bytes, as setHostnameAsFQDN may make it
			for name, host := range map[string]string{"host-long": long, "host-plain": "Web_0"} {
				c := n.runPod(name, func(c *runtimeapi.PodSandboxConfig) { c.Hostname = host }).run("c", forever)
				if got := c.exec("sh", "-c", "hostname; cat /etc/hostname; echo $HOSTNAME; tail -n 1 /etc/hosts | cut -f 2"); got != strings.Repeat(host+"\n", 4) {
					n.t.Errorf("hostname %q: %q", host, got)
				}
			}
			for _, bad := range []string{long + "c", strings.Repeat("a", 64), "-a", "a-", "a..b", ".", "a b", "a/b", "a\nb", "a\x00b", "ü", "a\n10.0.0.1 evil"} {
				wantError(n.t, n.tryRunPod("host-bad", func(c *runtimeapi.PodSandboxConfig) { c.Hostname = bad }), codes.InvalidArgument, "hostname")
			}
		},
		"hostname of the node": func(n *node) {
			for name, change := range map[string]func(*runtimeapi.PodSandboxConfig){
				"host-empty": func(c *runtimeapi.PodSandboxConfig) { c.Hostname = "" }, "host-node": hostNetwork,
			} {
				if got := n.runPod(name, change).run("c", forever).exec("sh", "-c", "hostname; cat /etc/hostname; echo $HOSTNAME"); got != strings.Repeat(hostName+"\n", 3) {
					n.t.Errorf("%s: %q, want %s", name, got, hostName)
				}
			}
		},
		"dns_config": func(n *node) {
			host, err := os.ReadFile("/etc/resolv.conf")
			if err != nil {
				n.t.Fatal(err)
			}
			for name, row := range map[string]struct {
				dns  *runtimeapi.DNSConfig
				want string
			}{
				"dns-nil":      {nil, string(host)},
				"dns-empty":    {&runtimeapi.DNSConfig{}, ""},
				"dns-searches": {&runtimeapi.DNSConfig{Searches: []string{"a.example", "."}}, "search a.example .\n"},
			} {
				c := n.runPod(name, func(c *runtimeapi.PodSandboxConfig) { c.DnsConfig = row.dns }).run("c", forever)
				if got := c.exec("cat", "/etc/resolv.conf"); got != row.want {
					n.t.Errorf("%s: %q, want %q", name, got, row.want)
				}
			}
			for _, bad := range []*runtimeapi.DNSConfig{{Servers: []string{"10.0.0.1\nnameserver 6.6.6.6"}}, {Searches: []string{"a b"}}, {Options: []string{""}}} {
				wantError(n.t, n.tryRunPod("dns-bad", func(c *runtimeapi.PodSandboxConfig) { c.DnsConfig = bad }), codes.InvalidArgument, "dns_config")
			}
		},
		"port_mappings": func(n *node) {
			ports := func(p ...*runtimeapi.PortMapping) func(*runtimeapi.PodSandboxConfig) {
				return func(c *runtimeapi.PodSandboxConfig) { c.PortMappings = p }
			}
			n.runPod("ports-none", ports(&runtimeapi.PortMapping{ContainerPort: 80}, &runtimeapi.PortMapping{ContainerPort: 80}))
			// The port is the container's own on the host's network: two pods may say so, and nothing is mapped.
			for _, name := range []string{"ports-host-1", "ports-host-2"} {
				n.runPod(name, hostNetwork, ports(&runtimeapi.PortMapping{ContainerPort: 12080, HostPort: 12080}))
			}
			for _, bad := range []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: 65536}, {ContainerPort: 80, HostPort: -1}, {HostPort: 80},
				{ContainerPort: 80, HostPort: 80, HostIp: "300.0.0.1"}, {ContainerPort: 80, HostPort: 80, Protocol: 9}} {
				wantError(n.t, n.tryRunPod("ports-bad", ports(bad)), codes.InvalidArgument, "port_mappings[0]")
			}
		},
		"labels and annotations": func(n *node) {
			p := n.runPod("texts", func(c *runtimeapi.PodSandboxConfig) { c.Labels, c.Annotations = anyText(), anyText() })
			for where, got := range map[string][2]map[string]string{
				"status": {p.status().GetLabels(), p.status().GetAnnotations()}, "list": {p.listedPod().GetLabels(), p.listedPod().GetAnnotations()},
			} {
				if !maps.Equal(got[0], anyText()) || !maps.Equal(got[1], anyText()) {
					n.t.Errorf("%s: labels or annotations have changed", where)
				}
			}
		},
		"annotations of the network": func(n *node) {
			for annotation, value := range map[string]string{"kubernetes.io/egress-bandwidth": "fast", "kubernetes.io/ingress-bandwidth": "2P",
				"cni.gantry.dev/mac": "01:00:5e:00:00:01", "cni.gantry.dev/aliases": "a b"} {
				annotate := func(c *runtimeapi.PodSandboxConfig) { c.Annotations = map[string]string{annotation: value} }
				wantError(n.t, n.tryRunPod("annotation-bad", annotate), codes.InvalidArgument, annotation)
				n.runPod("annotation-"+value[:1], annotate, hostNetwork) // which no annotation concerns
			}
			limited := n.runPod("annotation-good", func(c *runtimeapi.PodSandboxConfig) {
				c.Annotations = map[string]string{"kubernetes.io/egress-bandwidth": "1G", "kubernetes.io/ingress-bandwidth": "1G"}
			})
			limited.run("c", forever).exec("sh", "-c", "ping -c 1 -W 10 $(ip route | grep ^default | cut -d ' ' -f 3)")
		},
		"cgroup_parent": func(n *node) {
			c := n.runPod("cgroup-default", func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = "" }).run("c", forever)
			if got := read(t, "/proc/"+c.hostPID()+"/cgroup"); !strings.Contains(got, "/gantry/"+c.id) {
				n.t.Errorf("without a cgroup_parent:\n%s", got)
			}
			for _, bad := range []string{"kubepods-pod1.slice", "/a/../../b", "/", "/a b", "/a\nb", "a:b", "/" + strings.Repeat("x", 300)} {
				wantError(n.t, n.tryRunPod("cgroup-bad", func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = bad }), codes.InvalidArgument, "cgroup_parent")
			}
		},
		"log_directory": func(n *node) {
			p := n.runPod("logs-none", func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = "" })
			c := p.run("c", "echo unheard")
			if s := c.waitExit(); s.GetExitCode() != 0 || s.GetLogPath() != "" {
				n.t.Errorf("without a log_directory: exit code %d, log_path %q", s.GetExitCode(), s.GetLogPath())
			}
			dir := filepath.Join(n.LogDir, "not", "there", "yet")
			c = n.runPod("logs-new", func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = dir }).run("c", "echo heard")
			c.waitExit()
			if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o755 || c.logged("stdout") != "heard\n" {
				n.t.Errorf("a new log_directory: %v, %v", info, err)
			}
			for _, bad := range []string{"relative", "/a/../b", "/a\nb"} {
				wantError(n.t, n.tryRunPod("logs-bad", func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = bad }), codes.InvalidArgument, "log_directory")
			}
		},
		"namespaces of the node": func(n *node) {
			p := n.runPod("ns-node", hostNetwork, func(c *runtimeapi.PodSandboxConfig) {
				o := c.Linux.SecurityContext.NamespaceOptions
				o.Ipc, o.Pid = runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_NODE
			})
			c := p.run("c", forever)
			for _, kind := range []string{"net", "ipc", "pid", "uts"} {
				host, err := os.Readlink("/proc/self/ns/" + kind)
				if got := strings.TrimSpace(c.exec("readlink", "/proc/self/ns/"+kind)); err != nil || got != host {
					n.t.Errorf("%s: %s, the node's is %s, %v", kind, got, host, err)
				}
			}
			if got := p.status().GetLinux().GetNamespaces().GetOptions(); !proto.Equal(got, p.config.GetLinux().GetSecurityContext().GetNamespaceOptions()) {
				n.t.Errorf("options in the status: %v", got)
			}
			for field, o := range map[string]*runtimeapi.NamespaceOption{
				"network": {Network: runtimeapi.NamespaceMode_CONTAINER}, "ipc": {Ipc: runtimeapi.NamespaceMode_TARGET}, "pid": {Pid: runtimeapi.NamespaceMode_TARGET},
			} {
				err := n.tryRunPod("ns-bad", func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions = o })
				wantError(n.t, err, codes.InvalidArgument, "namespace_options."+field)
			}
		},
		"shared memory": func(n *node) {
			p := n.runPod("ns-ipc")
			a, b := p.run("a", forever), p.run("b", forever)
			if a.exec("readlink", "/proc/self/ns/ipc") != b.exec("readlink", "/proc/self/ns/ipc") {
				n.t.Error("the containers' IPC namespaces differ")
			}
			a.exec("sh", "-c", "echo note > /dev/shm/note")
			if got := b.exec("cat", "/dev/shm/note"); got != "note\n" {
				n.t.Errorf("/dev/shm/note: %q", got)
			}
			if got := strings.Fields(b.exec("df", "-k", "/dev/shm")); !slices.Contains(got, "65536") {
				n.t.Errorf("/dev/shm has not 64 MiB: %v", got)
			}
		},
		"runtime_handler": func(n *node) {
			for _, handler := range []string{"", "runc"} {
				c := n.podConfig("handler" + handler)
				resp, err := n.Runtime.RunPodSandbox(n.context(), &runtimeapi.RunPodSandboxRequest{Config: c, RuntimeHandler: handler})
				if err != nil {
					n.t.Fatal(err)
				}
				p := &pod{node: n, id: resp.GetPodSandboxId(), config: c}
				if s, l := p.status().GetRuntimeHandler(), p.listedPod().GetRuntimeHandler(); s != handler || l != handler {
					n.t.Errorf("handler %q: %q in the status, %q in the list", handler, s, l)
				}
				if err := n.removePod(p.id); err != nil {
					n.t.Error(err)
				}
			}
		},
		"nothing but a name": func(n *node) {
			p := n.runPod("bare", func(c *runtimeapi.PodSandboxConfig) {
				*c = runtimeapi.PodSandboxConfig{Metadata: c.Metadata, Windows: &runtimeapi.WindowsPodSandboxConfig{
					SecurityContext: &runtimeapi.WindowsSandboxSecurityContext{RunAsUsername: "nobody", HostProcess: true}}}
			})
			if o := p.status().GetLinux().GetNamespaces().GetOptions(); o == nil || o.GetNetwork() != runtimeapi.NamespaceMode_POD {
				n.t.Errorf("namespace options: %v", o)
			}
			resp, err := p.Runtime.CreateContainer(p.context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: &runtimeapi.ContainerConfig{
				Metadata: &runtimeapi.ContainerMetadata{Name: "bare"}, Image: &runtimeapi.ImageSpec{Image: n.image(busyboxTag).GetId()}, Command: []string{"true"},
				Windows: &runtimeapi.WindowsContainerConfig{SecurityContext: &runtimeapi.WindowsContainerSecurityContext{RunAsUsername: "nobody"}},
			}})
			if err != nil {
				n.t.Fatal(err)
			}
			c := &container{pod: p, id: resp.GetContainerId(), name: "bare"}
			c.start()
			if s := c.waitExit(); s.GetExitCode() != 0 {
				n.t.Errorf("exit code %d: %s", s.GetExitCode(), s.GetMessage())
			}
		},
		"statuses of all": func(n *node) {
			p := n.runPod("statuses")
			a, b := p.create("a", forever), p.run("b", forever)
			resp, err := n.Runtime.PodSandboxStatus(n.context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
			if err != nil {
				n.t.Fatal(err)
			}
			if s := resp.GetContainersStatuses(); len(s) != 2 || !proto.Equal(s[0], b.status()) || !proto.Equal(s[1], a.status()) || resp.GetTimestamp() < s[0].GetStartedAt() {
				n.t.Errorf("at %d: %v", resp.GetTimestamp(), s)
			}
			if !strings.Contains(resp.GetInfo()["info"], `"networkNamespace"`) {
				n.t.Errorf("info: %v", resp.GetInfo())
			}
			l, s := p.listedPod(), p.status()
			if l.GetCreatedAt() != s.GetCreatedAt() || l.GetState() != s.GetState() || !proto.Equal(l.GetMetadata(), p.config.GetMetadata()) || !proto.Equal(s.GetMetadata(), p.config.GetMetadata()) {
				n.t.Errorf("list %v, status %v", l, s)
			}
		},
		"attempt": func(n *node) {
			first := n.runPod("attempt")
			if _, err := n.Runtime.StopPodSandbox(n.context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: first.id}); err != nil {
				n.t.Fatal(err)
			}
			second := n.runPod("attempt", func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Attempt = 7 })
			if a, b := first.status(), second.status(); a.GetMetadata().GetAttempt() != 1 || b.GetMetadata().GetAttempt() != 7 || a.GetCreatedAt() >= b.GetCreatedAt() {
				n.t.Errorf("%v\n%v", a, b)
			}
		},
	})
}
