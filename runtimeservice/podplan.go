package runtimeservice

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/encoding/protojson"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/cni"
	"github.com/gantry-cri/gantry/runtimeservice/lifecycle"
	"github.com/gantry-cri/gantry/runtimeservice/ocispec"
	"github.com/gantry-cri/gantry/sandbox"
)

// podPlan is what a PodSandboxConfig asks for, once it has been understood.
type podPlan struct {
	sandbox      sandbox.PodConfig // without its id
	userns       *ocispec.UserNS   // nil = the host's
	cgroupParent string            // path below the hierarchies' roots
	warnings     []string
}

// planPod understands a PodSandboxConfig, or refuses it. It changes nothing.
func (c *core) planPod(pc *runtimeapi.PodSandboxConfig) (podPlan, error) {
	ns := pc.GetLinux().GetSecurityContext().GetNamespaceOptions()
	own, userns, err := ownNamespaces(ns)
	if err != nil {
		return podPlan{}, err
	}
	if userns != nil && c.node.NoUserNS {
		return podPlan{}, fmt.Errorf("namespace_options.userns_options: this node has no user namespaces, see the sysctl user.max_user_namespaces: %w", errdefs.ErrFailedPrecondition)
	}
	plan := podPlan{userns: userns}
	if plan.cgroupParent, err = cgroupDir(c.node, pc, ""); err != nil {
		return podPlan{}, err
	}
	if plan.warnings, err = ocispec.ValidatePod(c.node, pc); err != nil {
		return podPlan{}, err
	}
	sysctls, err := ocispec.Sysctls(pc.GetLinux().GetSysctls(), !own.Net, !own.IPC)
	if err != nil {
		return podPlan{}, err
	}
	hostname := pc.GetHostname()
	if hostname == "" || !own.UTS {
		if hostname, err = os.Hostname(); err != nil {
			return podPlan{}, fmt.Errorf("reading the host's name: %w", err)
		}
	}
	if _, err = portMappings(pc.GetPortMappings()); err != nil {
		return podPlan{}, err
	}
	if sysctls, err = withDefaultSysctls(sysctls, own, userns); err != nil {
		return podPlan{}, err
	}
	plan.sandbox = sandbox.PodConfig{
		Namespaces: own,
		IDs:        sandboxIDs(userns),
		Hostname:   hostname,
		Sysctls:    sysctls,
		ShmSize:    c.cfg.ShmSize,
		Files: map[string][]byte{
			sandbox.FileHostname: []byte(hostname + "\n"),
		},
	}
	if plan.sandbox.Files[sandbox.FileResolvConf], err = resolvConf(pc.GetDnsConfig()); err != nil {
		return podPlan{}, err
	}
	if !own.Net {
		if plan.sandbox.Files[sandbox.FileHosts], err = os.ReadFile("/etc/hosts"); err != nil && !os.IsNotExist(err) {
			return podPlan{}, fmt.Errorf("reading the host's hosts file: %w", err)
		}
	}
	return plan, nil
}

// ownNamespaces says which namespaces the pod has of its own; a pod on the
// host's network has the host's UTS namespace too, as with both peers.
func ownNamespaces(ns *runtimeapi.NamespaceOption) (own sandbox.Namespaces, userns *ocispec.UserNS, err error) {
	for _, o := range []struct {
		field string
		mode  runtimeapi.NamespaceMode
		own   *bool
	}{{"network", ns.GetNetwork(), &own.Net}, {"ipc", ns.GetIpc(), &own.IPC}} {
		switch o.mode {
		case runtimeapi.NamespaceMode_POD:
			*o.own = true
		case runtimeapi.NamespaceMode_NODE:
		default:
			return own, nil, fmt.Errorf("namespace_options.%s of a pod is POD or NODE, not %v: %w", o.field, o.mode, errdefs.ErrInvalidArgument)
		}
	}
	if ns.GetPid() == runtimeapi.NamespaceMode_TARGET {
		return own, nil, fmt.Errorf("namespace_options.pid of a pod cannot be TARGET: %w", errdefs.ErrInvalidArgument)
	}
	if userns, err = ocispec.ParseUserNS(ns); err != nil {
		return own, nil, err
	}
	own.UTS, own.User = own.Net, userns != nil
	return own, userns, nil
}

// withDefaultSysctls adds what containers of both peers have come to expect:
// ports below 1024 and ping without capabilities.
func withDefaultSysctls(asked map[string]string, own sandbox.Namespaces, userns *ocispec.UserNS) (map[string]string, error) {
	const pingGroups = "net/ipv4/ping_group_range"
	all := map[string]string{}
	if own.Net {
		all["net/ipv4/ip_unprivileged_port_start"] = "0"
		all[pingGroups] = "0 2147483647"
		if userns != nil {
			all[pingGroups] = fmt.Sprintf("0 %d", userns.Length-1)
		}
	}
	maps.Copy(all, asked)
	if !own.Net {
		return all, nil
	}
	var err error
	all[pingGroups], err = userns.PingGroups(all[pingGroups])
	return all, err
}

// resolvConf is the pod's resolv.conf. Without a DNSConfig it is the host's;
// an empty DNSConfig is an empty file, for that is what was asked for.
func resolvConf(dns *runtimeapi.DNSConfig) ([]byte, error) {
	if dns == nil {
		b, err := os.ReadFile("/etc/resolv.conf")
		if err != nil && !os.IsNotExist(err) {
			return nil, fmt.Errorf("reading the host's resolv.conf: %w", err)
		}
		return b, nil
	}
	for _, list := range []struct {
		field  string
		values []string
	}{{"servers", dns.GetServers()}, {"searches", dns.GetSearches()}, {"options", dns.GetOptions()}} {
		for _, v := range list.values {
			if v == "" || strings.ContainsAny(v, "\n\r\x00 \t") {
				return nil, fmt.Errorf("dns_config.%s %q holds a blank or is empty: %w", list.field, v, errdefs.ErrInvalidArgument)
			}
		}
	}
	var b bytes.Buffer
	if s := dns.GetSearches(); len(s) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(s, " "))
	}
	for _, s := range dns.GetServers() {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if o := dns.GetOptions(); len(o) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(o, " "))
	}
	return b.Bytes(), nil
}

// hostsFile is /etc/hosts of a pod whose client (the kubelet does) mounts none.
func hostsFile(hostname string, ips []netip.Addr) []byte {
	var b bytes.Buffer
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	for _, ip := range ips {
		fmt.Fprintf(&b, "%s\t%s\n", ip, hostname)
	}
	return b.Bytes()
}

// portMappings are the host ports that were asked for: without a host_port there is nothing to map.
func portMappings(in []*runtimeapi.PortMapping) ([]cni.PortMapping, error) {
	var out []cni.PortMapping
	for i, m := range in {
		if m.GetHostPort() == 0 {
			continue
		}
		bad := func(field string, v any) error {
			return fmt.Errorf("port_mappings[%d].%s %v is not valid: %w", i, field, v, errdefs.ErrInvalidArgument)
		}
		if m.GetHostPort() < 0 || m.GetHostPort() > 65535 {
			return nil, bad("host_port", m.GetHostPort())
		}
		if m.GetContainerPort() < 1 || m.GetContainerPort() > 65535 {
			return nil, bad("container_port", m.GetContainerPort())
		}
		proto, ok := map[runtimeapi.Protocol]string{runtimeapi.Protocol_TCP: "tcp", runtimeapi.Protocol_UDP: "udp", runtimeapi.Protocol_SCTP: "sctp"}[m.GetProtocol()]
		if !ok {
			return nil, bad("protocol", m.GetProtocol())
		}
		pm := cni.PortMapping{Protocol: proto, ContainerPort: uint16(m.GetContainerPort()), HostPort: uint16(m.GetHostPort())}
		if ip := m.GetHostIp(); ip != "" {
			addr, err := netip.ParseAddr(ip)
			if err != nil {
				return nil, bad("host_ip", fmt.Sprintf("%q", ip))
			}
			pm.HostIP = addr
		}
		out = append(out, pm)
	}
	return out, nil
}

// newPod is a pod in the state Creating that nobody knows yet.
func (s *pods) newPod(req *runtimeapi.RunPodSandboxRequest, plan podPlan, h Handler) (*pod, error) {
	configJSON, err := protojson.Marshal(req.GetConfig())
	if err != nil {
		return nil, fmt.Errorf("encoding the pod's config: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return &pod{
		id: newID(), key: keyOfPod(req.GetConfig()), handler: req.GetRuntimeHandler(), runtime: h.Name, config: req.GetConfig(), configJSON: configJSON,
		own: plan.sandbox.Namespaces, userns: plan.userns, createdAt: s.index.now(), bootID: s.bootID, feed: s.feed,
		op: newOpLock(), made: make(chan struct{}), state: lifecycle.PodCreating,
	}, nil
}

func keyOfPod(pc *runtimeapi.PodSandboxConfig) podKey {
	m := pc.GetMetadata()
	return podKey{name: m.GetName(), namespace: m.GetNamespace(), uid: m.GetUid(), attempt: m.GetAttempt()}
}

// sharedPID reports whether the containers of a pod share a PID namespace, which then needs an init.
func sharedPID(pc *runtimeapi.PodSandboxConfig) bool {
	return pc.GetLinux().GetSecurityContext().GetNamespaceOptions().GetPid() == runtimeapi.NamespaceMode_POD
}

// podNetwork is the pod as package cni sees it.
func (c *core) podNetwork(p *pod) cni.Pod {
	// planPod has found no fault with these two before the pod was made.
	ports, _ := portMappings(p.config.GetPortMappings())
	parent, _ := cgroupDir(c.node, p.config, "")
	dns := p.config.GetDnsConfig()
	return cni.Pod{
		ID: p.id, Name: p.key.name, Namespace: p.key.namespace, UID: p.key.uid,
		NetNS: c.host.PodPaths(p.id, p.own).Net, PortMappings: ports,
		DNSServers: dns.GetServers(), DNSSearches: dns.GetSearches(), DNSOptions: dns.GetOptions(),
		CgroupParent: parent, Annotations: p.config.GetAnnotations(),
	}
}

// startPodInit runs the first process of the pod's shared PID namespace and pins the namespace.
func (s *pods) startPodInit(ctx context.Context, p *pod, paths sandbox.PodPaths, h Handler) error {
	cgroupsPath, err := ocispec.CgroupsPath(s.node, p.config.GetLinux().GetCgroupParent(), p.id)
	if err != nil {
		return err
	}
	spec, err := ocispec.BuildPodInit(s.nodeFor(h), s.specPod(p, paths), s.host.PodInitRoot(), cgroupsPath)
	if err != nil {
		return err
	}
	if err := s.host.WriteBundle(p.id, spec); err != nil {
		return err
	}
	dir, err := cgroupDir(s.node, p.config, p.id)
	if err != nil {
		return err
	}
	pid, err := s.host.Start(ctx, sandbox.Container{ID: p.id, Runtime: s.runtime(h), Cgroup: dir})
	if err != nil {
		return fmt.Errorf("starting the pod's init: %w", withPidsLimit(err, dir))
	}
	return s.host.PinPID(p.id, pid)
}
