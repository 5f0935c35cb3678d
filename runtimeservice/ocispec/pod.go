package ocispec

import (
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// podInitOOMScore protects the init of a pod as both peers protect their pause
// process: without it the pod's PID namespace, and all in it, is gone.
const podInitOOMScore = -998

// ValidatePod refuses what a pod may not ask for, or cannot have yet, in its
// security context and resources. The namespaces of the pod, its sysctls
// ([Sysctls]) and its cgroup_parent ([CgroupsPath]) have their own checks.
func ValidatePod(n Node, cfg *runtimeapi.PodSandboxConfig) (warnings []string, err error) {
	sc := cfg.GetLinux().GetSecurityContext()
	userns, err := ParseUserNS(sc.GetNamespaceOptions())
	if err != nil {
		return nil, err
	}
	user, err := podUser(sc)
	if err != nil {
		return nil, err
	}
	if err := userns.has(user); err != nil {
		return nil, err
	}
	old, err := oldSeccomp(sc)
	if err != nil {
		return nil, err
	}
	if _, err := oneProfile("seccomp", sc.GetSeccomp(), old); err != nil {
		return nil, err
	}
	p, err := oneProfile("apparmor", sc.GetApparmor(), nil)
	if err != nil {
		return nil, err
	}
	if p.GetProfileType() == runtimeapi.SecurityProfile_Localhost && !n.AppArmor {
		return nil, fmt.Errorf("apparmor: profile %q cannot be applied, this node does not run AppArmor: %w", p.GetLocalhostRef(), errdefs.ErrFailedPrecondition)
	}
	return seLinux(n, sc.GetSelinuxOptions()), nil
}

// podUser is who the pod's own process runs as.
func podUser(sc *runtimeapi.LinuxSandboxSecurityContext) (User, error) {
	return ResolveUser(&runtimeapi.LinuxContainerSecurityContext{
		RunAsUser:                sc.GetRunAsUser(),
		RunAsGroup:               sc.GetRunAsGroup(),
		SupplementalGroups:       sc.GetSupplementalGroups(),
		SupplementalGroupsPolicy: sc.GetSupplementalGroupsPolicy(),
	}, "", nil, nil)
}

// BuildPodInit is the spec of the first process of a pod that shares one PID
// namespace. It does nothing but hold the namespace, so whatever the pod asks
// for it has no capability, the default seccomp profile, no new privileges and
// a root file system, at rootfs, that is read-only and holds only /init and
// mount points. The pod's run_as_user and run_as_group count.
func BuildPodInit(n Node, p Pod, rootfs, cgroupsPath string) (*specs.Spec, error) {
	user, err := podUser(p.Config.GetLinux().GetSecurityContext())
	if err != nil {
		return nil, fmt.Errorf("pod %s: %w", p.ID, err)
	}
	score := max(podInitOOMScore, n.MinOOMScoreAdj)
	spec := &specs.Spec{
		Version: ociVersion(n),
		Root:    &specs.Root{Path: rootfs, Readonly: true},
		Process: &specs.Process{
			User:            specUser(user),
			Args:            []string{"/init"},
			Cwd:             "/",
			Capabilities:    &specs.LinuxCapabilities{},
			Rlimits:         rlimits(n),
			NoNewPrivileges: true,
			SelinuxLabel:    p.ProcessLabel,
			OOMScoreAdj:     &score,
		},
		// An OCI runtime needs its own /proc and /dev (CVE-2026-88264), the init neither.
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "strictatime", "mode=755", "size=64k"}},
		},
		Linux: &specs.Linux{
			CgroupsPath:   cgroupsPath,
			MountLabel:    p.MountLabel,
			Namespaces:    []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}},
			MaskedPaths:   slices.Clone(maskedPaths),
			ReadonlyPaths: slices.Clone(readonlyPaths),
			Resources:     &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
		},
	}
	if p.UserNS != nil {
		spec.Linux.UIDMappings, spec.Linux.GIDMappings = p.UserNS.mappings()
	}
	for _, ns := range []specs.LinuxNamespace{
		{Type: specs.UserNamespace, Path: p.UserNSPath},
		{Type: specs.NetworkNamespace, Path: p.NetNS},
		{Type: specs.IPCNamespace, Path: p.IPCNS},
		{Type: specs.UTSNamespace, Path: p.UTSNS},
	} {
		if ns.Path != "" {
			spec.Linux.Namespaces = append(spec.Linux.Namespaces, ns)
		}
	}
	if n.Cgroup2 {
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	if spec.Linux.Seccomp, err = defaultSeccomp(n, spec); err != nil {
		return nil, err
	}
	if err := checkSpec(n, spec); err != nil {
		return nil, fmt.Errorf("pod %s: %w", p.ID, err)
	}
	return spec, nil
}
