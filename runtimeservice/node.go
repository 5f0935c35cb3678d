package runtimeservice

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/runtimeservice/ocispec"
	"github.com/gantry-cri/gantry/sandbox"
	"github.com/gantry-cri/gantry/sandbox/apparmor"
	"github.com/gantry-cri/gantry/sandbox/cgroup"
)

// node is the RPCs about the runtime as a whole. All answer from memory.
type node struct{ *core }

// Names that the kubelet sees; the runtime's name becomes the prefix of every
// container id in the cluster and must never change.
const (
	runtimeName    = "gantry"
	kubeAPIVersion = "0.1.0"
	criVersion     = "v1"
)

// Version says who answers. The kubelet wants exactly this `version`.
func (s *node) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{Version: kubeAPIVersion, RuntimeName: runtimeName, RuntimeVersion: s.cfg.Version, RuntimeApiVersion: criVersion}, nil
}

// Status tells whether pods can run and what the handlers can do.
func (s *node) Status(_ context.Context, req *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	network := &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: true}
	if err := s.networks.Status(); err != nil {
		network.Status, network.Reason, network.Message = false, "NetworkPluginNotReady", err.Error()
	}
	ready := &runtimeapi.RuntimeCondition{Type: runtimeapi.RuntimeReady, Status: true}
	if _, err := s.handler(""); err != nil {
		ready.Status, ready.Reason, ready.Message = false, "DefaultRuntimeNotReady", err.Error()
	}
	resp := &runtimeapi.StatusResponse{
		Status:   &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{ready, network}},
		Features: &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true, UserNamespacesHostNetwork: true, MountOptions: true},
	}
	for _, h := range s.cfg.Handlers {
		features := &runtimeapi.RuntimeHandlerFeatures{
			RecursiveReadOnlyMounts: h.Err == nil && h.Features.RecursiveReadOnly,
			// The kubelet wants the owners of all volumes mapped.
			UserNamespaces: h.Err == nil && !s.core.node.NoUserNS && h.Features.HasUserNamespaces() && h.Features.IDMappedMounts,
		}
		if h.Name == s.cfg.DefaultHandler {
			resp.RuntimeHandlers = append(resp.RuntimeHandlers, &runtimeapi.RuntimeHandler{Name: "", Features: features})
		}
		resp.RuntimeHandlers = append(resp.RuntimeHandlers, &runtimeapi.RuntimeHandler{Name: h.Name, Features: features})
	}
	if req.GetVerbose() {
		type handler struct {
			Handler
			Error string `json:",omitempty"`
		}
		var handlers []handler
		for _, h := range s.cfg.Handlers {
			shown := handler{Handler: h}
			if h.Err != nil {
				shown.Error = h.Err.Error()
			}
			handlers = append(handlers, shown)
		}
		b, err := json.Marshal(map[string]any{"handlers": handlers, "defaultHandler": s.cfg.DefaultHandler, "root": s.cfg.Root, "node": s.core.node})
		if err != nil {
			return nil, fmt.Errorf("encoding the verbose info: %w", err)
		}
		resp.Info = map[string]string{"config": string(b)}
	}
	return resp, nil
}

// RuntimeConfig tells the cgroup driver, which the kubelet then uses too.
func (s *node) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	driver := runtimeapi.CgroupDriver_CGROUPFS
	if s.cfg.SystemdCgroup {
		driver = runtimeapi.CgroupDriver_SYSTEMD
	}
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}

// UpdateRuntimeConfig takes the range of pod addresses that the cluster has given this node.
func (s *node) UpdateRuntimeConfig(_ context.Context, req *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	if cidr := req.GetRuntimeConfig().GetNetworkConfig().GetPodCidr(); cidr != "" {
		if err := s.networks.SetPodCIDR(cidr); err != nil {
			return nil, fmt.Errorf("network_config.pod_cidr: %w", err)
		}
	}
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}

// nodeFacts finds what specs have to know of this machine.
func nodeFacts(ctx context.Context, cfg Config, host *sandbox.Host) (ocispec.Node, error) {
	x32, err := host.HasX32(ctx)
	if err != nil {
		klog.FromContext(ctx).Error(err, "Seccomp filters are made for the x32 ABI too")
	}
	n := ocispec.Node{
		Cgroup2:        host.CgroupVersion() == cgroup.V2,
		Systemd:        cfg.SystemdCgroup,
		MinOOMScoreAdj: -1000,
		Hugetlb:        cgroup.Has("hugetlb"),
		Pids:           cgroup.Has("pids"),
		SwapAccounting: cgroup.HasSwap(),
		NoUserNS:       !kernelHas("/proc/self/uid_map", "") || kernelHas("/proc/sys/user/max_user_namespaces", "0"),
		SELinux:        cfg.SELinux,
		NoX32:          !x32,
		SeccompRoot:    cfg.SeccompRoot,
	}
	if n.AppArmor, err = apparmor.Enabled(); n.AppArmor {
		if err = apparmor.Load(ctx); err == nil {
			n.AppArmorProfile = apparmor.DefaultProfile
		}
	}
	if err != nil {
		klog.FromContext(ctx).Error(err, "Containers run without an AppArmor profile, but for those that name one")
	}
	permitted, err := permittedCapabilities()
	if err != nil {
		return n, err
	}
	n.Capabilities = ocispec.CapabilityNames(permitted)
	if permitted&(1<<unix.CAP_SYS_RESOURCE) != 0 {
		return n, nil
	}
	// Nothing may be given that we have not ourselves.
	if n.Rlimits, err = cappedRlimits(); err != nil {
		return n, err
	}
	b, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return n, fmt.Errorf("reading own oom_score_adj: %w", err)
	}
	if n.MinOOMScoreAdj, err = strconv.Atoi(strings.TrimSpace(string(b))); err != nil {
		return n, fmt.Errorf("reading own oom_score_adj: %w", err)
	}
	if n.MinOOMScoreAdj > -1000 {
		klog.FromContext(ctx).Info("The oom_score_adj of processes is never lower than the daemon's own, give it CAP_SYS_RESOURCE to change that", "lowest", n.MinOOMScoreAdj)
	}
	return n, nil
}

// kernelHas reports whether a file of the kernel is there and begins with want.
func kernelHas(path, want string) bool {
	b, err := os.ReadFile(path)
	return err == nil && strings.HasPrefix(string(b), want)
}

// permittedCapabilities are the daemon's own, bit n for capability n.
func permittedCapabilities() (uint64, error) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return 0, fmt.Errorf("reading own capabilities: %w", err)
	}
	return uint64(data[0].Permitted) | uint64(data[1].Permitted)<<32, nil
}

// rlimitNumbers are those of setrlimit(2), the same on amd64 and arm64.
var rlimitNumbers = map[string]int{
	"RLIMIT_CPU": 0, "RLIMIT_FSIZE": 1, "RLIMIT_DATA": 2, "RLIMIT_STACK": 3, "RLIMIT_CORE": 4, "RLIMIT_RSS": 5, "RLIMIT_NPROC": 6,
	"RLIMIT_NOFILE": 7, "RLIMIT_MEMLOCK": 8, "RLIMIT_AS": 9, "RLIMIT_LOCKS": 10, "RLIMIT_SIGPENDING": 11, "RLIMIT_MSGQUEUE": 12,
	"RLIMIT_NICE": 13, "RLIMIT_RTPRIO": 14, "RLIMIT_RTTIME": 15,
}

// cappedRlimits are the limits of containers on a node that may not raise its own.
func cappedRlimits() ([]specs.POSIXRlimit, error) {
	var own []specs.POSIXRlimit
	for name, number := range rlimitNumbers {
		var l unix.Rlimit
		if err := unix.Getrlimit(number, &l); err != nil {
			return nil, fmt.Errorf("reading own %s: %w", name, err)
		}
		own = append(own, specs.POSIXRlimit{Type: name, Soft: l.Cur, Hard: l.Max})
	}
	return ocispec.DefaultRlimits(own), nil
}

// nodeFor is the node as the specs for a handler have to know it.
func (c *core) nodeFor(h Handler) ocispec.Node {
	n := c.node
	n.OCIVersion = h.Features.OCIVersion
	n.IDMappedMounts = h.Features.IDMappedMounts
	n.RecursiveReadOnly = h.Features.RecursiveReadOnly
	n.Annotations = h.filter
	n.CgroupWritable = h.CgroupWritable
	return n
}
