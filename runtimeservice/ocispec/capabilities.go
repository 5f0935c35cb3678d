package ocispec

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// knownCapabilities are those of capabilities(7), in the kernel's order.
var knownCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER",
	"CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP",
	"CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST",
	"CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER",
	"CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE",
	"CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE",
	"CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD",
	"CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP",
	"CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM",
	"CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF",
	"CAP_CHECKPOINT_RESTORE",
}

// defaultCapabilities are the fourteen that containerd and Docker give, for
// images are made to run with them.
var defaultCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL",
	"CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE",
	"CAP_NET_RAW", "CAP_SYS_CHROOT", "CAP_MKNOD", "CAP_AUDIT_WRITE",
	"CAP_SETFCAP",
}

// CapabilityNames are the capabilities of a set as capget(2) has it: bit n is
// capability n of linux/capability.h. For Node.Capabilities.
func CapabilityNames(mask uint64) []string {
	names := []string{}
	for n, name := range knownCapabilities {
		if mask&(1<<n) != 0 {
			names = append(names, name)
		}
	}
	return names
}

// capabilities are the sets that the process starts with: bounding, permitted
// and effective, which are one, and ambient.
//
// "ALL" in add stands for every capability, "ALL" in drop for starting from
// none; then single ones are added and last of all dropped.
//
// A process that is not root loses what is effective when it runs its program:
// of permitted, execve(2) keeps the ambient set alone (capabilities(7)). So a
// user gets a capability by add_ambient_capabilities or not at all, and only
// what that names is ever ambient (CVE-2018-1000400).
//
// The kernel takes an ambient capability only if it is inheritable too. The
// inheritable set is exactly the ambient one, otherwise empty: with more, a
// program of the image that has inheritable file capabilities would get what
// nobody gave to it (CVE-2022-24769). With just this it gets what every
// program of the container has by the ambient set anyway.
func capabilities(n Node, sc *runtimeapi.LinuxContainerSecurityContext) (*specs.LinuxCapabilities, error) {
	asked := sc.GetCapabilities()
	add, addAll, err := capabilityNames("add_capabilities", asked.GetAddCapabilities())
	if err != nil {
		return nil, err
	}
	drop, dropAll, err := capabilityNames("drop_capabilities", asked.GetDropCapabilities())
	if err != nil {
		return nil, err
	}
	raise, raiseAll, err := capabilityNames("add_ambient_capabilities", asked.GetAddAmbientCapabilities())
	if err != nil {
		return nil, err
	}
	add = slices.Concat(add, raise) // what is ambient must be permitted
	has := func(c string) bool { return n.Capabilities == nil || slices.Contains(n.Capabilities, c) }
	var set, ambient []string
	for _, c := range knownCapabilities {
		dropped := slices.Contains(drop, c) && !sc.GetPrivileged()
		switch {
		case dropped && slices.Contains(raise, c):
			return nil, fmt.Errorf("capabilities.add_ambient_capabilities: %s is in drop_capabilities too: %w", c, errdefs.ErrInvalidArgument)
		case dropped:
			continue
		case slices.Contains(add, c):
			if !has(c) {
				return nil, fmt.Errorf("capabilities.add_capabilities: this node has no %s to give: %w", c, errdefs.ErrFailedPrecondition)
			}
		case !has(c):
			continue
		case sc.GetPrivileged():
		case dropAll || !addAll && !slices.Contains(defaultCapabilities, c):
			continue
		}
		set = append(set, c)
		if raiseAll || slices.Contains(raise, c) {
			ambient = append(ambient, c)
		}
	}
	return &specs.LinuxCapabilities{
		Bounding:    set,
		Effective:   slices.Clone(set),
		Permitted:   slices.Clone(set),
		Inheritable: ambient,
		Ambient:     slices.Clone(ambient),
	}, nil
}

// capabilityNames reads names in any case, with or without CAP_.
func capabilityNames(field string, names []string) (caps []string, all bool, err error) {
	for _, name := range names {
		c := strings.ToUpper(name)
		if c == "ALL" {
			all = true
			continue
		}
		if !strings.HasPrefix(c, "CAP_") {
			c = "CAP_" + c
		}
		if !slices.Contains(knownCapabilities, c) {
			return nil, false, fmt.Errorf("capabilities.%s: %q is no capability of Linux: %w", field, name, errdefs.ErrInvalidArgument)
		}
		caps = append(caps, c)
	}
	return caps, all, nil
}
