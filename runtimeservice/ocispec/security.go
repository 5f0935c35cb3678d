package ocispec

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What Gantry masks and makes read-only wherever the kubelet masks anything:
// the lists of current kubelets, for one that is older may lack the newer
// entries (energy counters and interrupts tell a neighbour's secrets). The
// per-CPU thermal counters are left to the kubelet, for a mount each for every
// CPU in every container costs more than the start of the container.
var (
	maskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore",
		"/proc/keys", "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi",
		"/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap",
		"/sys/firmware", "/sys/fs/selinux",
	}
	readonlyPaths = []string{
		"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
	}
)

// confine sets capabilities, seccomp, AppArmor, and masked and read-only paths.
func confine(n Node, c Container, spec *specs.Spec) (warnings []string, err error) {
	sc := c.Config.GetLinux().GetSecurityContext()
	if spec.Process.Capabilities, err = capabilities(n, sc); err != nil {
		return nil, err
	}
	if spec.Linux.Seccomp, err = seccompProfile(n, c, spec); err != nil {
		return nil, err
	}
	if spec.Process.ApparmorProfile, err = AppArmorProfile(n, sc); err != nil {
		return nil, err
	}
	spec.Process.SelinuxLabel, spec.Linux.MountLabel = c.ProcessLabel, c.MountLabel
	warnings = seLinux(n, sc.GetSelinuxOptions())
	if sc.GetPrivileged() {
		if sc.GetSeccomp().GetProfileType() == runtimeapi.SecurityProfile_Localhost {
			warnings = append(warnings, fmt.Sprintf("seccomp: profile %q has no effect on a privileged container", sc.GetSeccomp().GetLocalhostRef()))
		}
		return warnings, nil
	}
	if spec.Linux.MaskedPaths, err = pathList("masked_paths", sc.GetMaskedPaths(), maskedPaths); err != nil {
		return nil, err
	}
	spec.Linux.ReadonlyPaths, err = pathList("readonly_paths", sc.GetReadonlyPaths(), readonlyPaths)
	return warnings, err
}

// pathList is the list that was asked for and the entries of ours that it
// lacks. An empty list stays empty: that is how the kubelet says
// procMount: Unmasked.
func pathList(field string, asked, ours []string) ([]string, error) {
	if len(asked) == 0 {
		return nil, nil
	}
	var list []string
	for i, p := range slices.Concat(asked, ours) {
		clean, err := cleanPath(p)
		if err != nil {
			return nil, fmt.Errorf("%s, entry %d: %w", field, i, err)
		}
		if !slices.Contains(list, clean) {
			list = append(list, clean)
		}
	}
	return list, nil
}

// AppArmorProfile is the AppArmor profile of a container, "" for none; the
// caller makes sure that it is loaded. A node without AppArmor has nothing that
// RuntimeDefault could stand for, but a profile that is asked for by name must
// not be left out. A privileged container has the profile that it names, and
// otherwise none: the default one would keep it from its purpose.
//
// Where the field is given, the deprecated one does not count, whatever it
// says; its prefix localhost/ may stand in the field as well. critest wants both.
func AppArmorProfile(n Node, sc *runtimeapi.LinuxContainerSecurityContext) (string, error) {
	old, err := oldAppArmor(sc)
	if err != nil {
		return "", err
	}
	if sc.GetApparmor() != nil {
		old = nil
	}
	p, err := oneProfile("apparmor", sc.GetApparmor(), old)
	if err != nil {
		return "", err
	}
	name := strings.TrimPrefix(p.GetLocalhostRef(), "localhost/")
	switch {
	case sc.GetPrivileged() && p.GetProfileType() != runtimeapi.SecurityProfile_Localhost:
		return "", nil
	case p == nil:
		return n.appArmorDefault(), nil
	case p.ProfileType == runtimeapi.SecurityProfile_Unconfined:
		return "", nil
	case p.ProfileType == runtimeapi.SecurityProfile_RuntimeDefault:
		if n.AppArmor && n.AppArmorProfile == "" {
			return "", fmt.Errorf("apparmor: RuntimeDefault: the default profile could not be loaded on this node, gantry doctor says why: %w", errdefs.ErrFailedPrecondition)
		}
		return n.appArmorDefault(), nil
	case !n.AppArmor:
		return "", fmt.Errorf("apparmor: profile %q cannot be applied, this node does not run AppArmor: %w", name, errdefs.ErrFailedPrecondition)
	case name == "" || len(name) > 255 || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r > '~' }):
		return "", fmt.Errorf("apparmor: %q is no name of a profile: %w", p.LocalhostRef, errdefs.ErrInvalidArgument)
	}
	return name, nil
}

func (n Node) appArmorDefault() string {
	if !n.AppArmor {
		return ""
	}
	return n.AppArmorProfile
}

// seLinux warns of labels that nothing is given. It is no error, as with both
// peers: pods are written for clusters whose nodes differ in that.
func seLinux(n Node, o *runtimeapi.SELinuxOption) (warnings []string) {
	if n.SELinux || o.GetUser() == "" && o.GetRole() == "" && o.GetType() == "" && o.GetLevel() == "" {
		return nil
	}
	return []string{"selinux_options have no effect, this node gives containers no SELinux labels (see selinux in the configuration)"}
}
