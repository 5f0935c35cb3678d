package ocispec

import (
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// namespaces are those that the container gets. Network, IPC and UTS are the
// pod's whatever the container says, but it may not say another thing than the
// pod; PID is by its own option.
func namespaces(n Node, p Pod, c Container) ([]specs.LinuxNamespace, error) {
	sc := c.Config.GetLinux().GetSecurityContext()
	opts, podOpts := sc.GetNamespaceOptions(), p.namespaceOptions()
	if opts == nil {
		opts = podOpts // a client that says nothing wants the pod's way
	}
	if u := opts.GetUsernsOptions(); u != nil && !proto.Equal(u, podOpts.GetUsernsOptions()) {
		return nil, fmt.Errorf("namespace_options.userns_options are not those of the pod: %w", errdefs.ErrInvalidArgument)
	}
	list := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	if asked := podOpts.GetUsernsOptions(); asked != nil && asked.GetMode() != runtimeapi.NamespaceMode_NODE && (p.UserNS == nil || p.UserNSPath == "") {
		return nil, fmt.Errorf("namespace_options.userns_options: pod %s should have a user namespace and has none: %w", p.ID, errdefs.ErrFailedPrecondition)
	}
	if p.UserNS != nil {
		list = append(list, specs.LinuxNamespace{Type: specs.UserNamespace, Path: p.UserNSPath})
	}
	for _, ns := range []struct {
		field     string
		mode, pod runtimeapi.NamespaceMode
		kind      specs.LinuxNamespaceType
		path      string
	}{
		{"network", opts.GetNetwork(), podOpts.GetNetwork(), specs.NetworkNamespace, p.NetNS},
		{"ipc", opts.GetIpc(), podOpts.GetIpc(), specs.IPCNamespace, p.IPCNS},
		{"uts", runtimeapi.NamespaceMode_POD, podOpts.GetNetwork(), specs.UTSNamespace, p.UTSNS},
	} {
		switch {
		case ns.path == "" && ns.pod != runtimeapi.NamespaceMode_NODE:
			return nil, fmt.Errorf("namespace_options.%s: pod %s should have its own and has none: %w", ns.field, p.ID, errdefs.ErrFailedPrecondition)
		case ns.mode != runtimeapi.NamespaceMode_POD && ns.mode != runtimeapi.NamespaceMode_NODE:
			return nil, fmt.Errorf("namespace_options.%s: mode %s is not possible: %w", ns.field, ns.mode, errdefs.ErrInvalidArgument)
		case ns.mode == runtimeapi.NamespaceMode_NODE && ns.path != "":
			return nil, fmt.Errorf("namespace_options.%s: mode NODE in a pod that has its own: %w", ns.field, errdefs.ErrInvalidArgument)
		case ns.path != "":
			list = append(list, specs.LinuxNamespace{Type: ns.kind, Path: ns.path})
		}
	}
	pid, err := pidNamespace(opts, podOpts, p.PIDNS, c.TargetPIDNS)
	if err != nil {
		return nil, err
	}
	if pid != nil {
		list = append(list, *pid)
	}
	// Its own view of the cgroups: with it the container cannot see, and never
	// write, what lies above its own (CVE-2023-25809).
	if n.Cgroup2 && !sc.GetPrivileged() {
		list = append(list, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	return list, nil
}

// writableCgroups is whether unprivileged containers may write to their
// cgroups. With a cgroup namespace they reach nothing above their own, and what
// they get is bounded by the pod's; on version 1 they would reach release_agent
// (CVE-2022-0492).
func (n Node) writableCgroups() bool { return n.CgroupWritable && n.Cgroup2 }

// pidNamespace is nil for the host's. A pod whose option is CONTAINER or
// TARGET has no namespace to share, so a container that asks for it is
// refused rather than put into the host's.
func pidNamespace(opts, podOpts *runtimeapi.NamespaceOption, podNS, targetNS string) (*specs.LinuxNamespace, error) {
	ns := &specs.LinuxNamespace{Type: specs.PIDNamespace}
	switch mode := opts.GetPid(); mode {
	case runtimeapi.NamespaceMode_POD:
		switch {
		case podNS != "":
			ns.Path = podNS
		case podOpts.GetPid() == runtimeapi.NamespaceMode_NODE:
			return nil, nil
		default:
			return nil, fmt.Errorf("namespace_options.pid: mode POD in a pod whose mode is %s and which shares no PID namespace: %w",
				podOpts.GetPid(), errdefs.ErrInvalidArgument)
		}
	case runtimeapi.NamespaceMode_CONTAINER:
	case runtimeapi.NamespaceMode_NODE:
		if podOpts.GetPid() != runtimeapi.NamespaceMode_NODE {
			return nil, fmt.Errorf("namespace_options.pid: mode NODE in a pod whose mode is %s: %w", podOpts.GetPid(), errdefs.ErrInvalidArgument)
		}
		return nil, nil
	case runtimeapi.NamespaceMode_TARGET:
		if opts.GetTargetId() == "" || targetNS == "" {
			return nil, fmt.Errorf("namespace_options.target_id %q: mode TARGET needs a running container of the same pod: %w",
				opts.GetTargetId(), errdefs.ErrInvalidArgument)
		}
		ns.Path = targetNS
	default:
		return nil, fmt.Errorf("namespace_options.pid: mode %s is not possible: %w", mode, errdefs.ErrInvalidArgument)
	}
	return ns, nil
}

func (p Pod) namespaceOptions() *runtimeapi.NamespaceOption {
	return p.Config.GetLinux().GetSecurityContext().GetNamespaceOptions()
}
