package ocispec

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// A slash is no separator here, so that a name means one file below
// /proc/sys however it is written; the kubelet sends dots. Values hold what
// values of namespaced sysctls are made of, without a sign that could start
// another assignment for whoever joins several (CVE-2022-0811).
var (
	sysctlName  = regexp.MustCompile(`^[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-_a-z0-9]*[a-z0-9])?)+$`)
	sysctlValue = regexp.MustCompile(`^[A-Za-z0-9_.,:/ \t-]*$`)
)

// ipcSysctls belong to the IPC namespace (ipc_namespaces(7)).
var ipcSysctls = []string{
	"kernel.auto_msgmni", "kernel.msg_next_id", "kernel.msgmax", "kernel.msgmnb",
	"kernel.msgmni", "kernel.sem", "kernel.sem_next_id", "kernel.shm_next_id",
	"kernel.shm_rmid_forced", "kernel.shmall", "kernel.shmmax", "kernel.shmmni",
}

// ValidateSysctls checks the sysctls of a pod. Each must belong to a namespace
// that the pod has of its own: on the host's network or IPC it would change
// the host (CVE-2022-0532), as would one that belongs to no namespace.
func ValidateSysctls(sysctls map[string]string, hostNet, hostIPC bool) error {
	for _, name := range slices.Sorted(maps.Keys(sysctls)) {
		value := sysctls[name]
		if len(name) > 253 || !sysctlName.MatchString(name) {
			return fmt.Errorf("sysctls: %.256q is no name of a sysctl in dotted form: %w", name, errdefs.ErrInvalidArgument)
		}
		if len(value) > 4096 || !sysctlValue.MatchString(value) {
			return fmt.Errorf("sysctls: the value of %s holds characters that no value has: %w", name, errdefs.ErrInvalidArgument)
		}
		switch {
		case strings.HasPrefix(name, "net."):
			if hostNet {
				return fmt.Errorf("sysctls: %s in a pod on the host's network: %w", name, errdefs.ErrInvalidArgument)
			}
		case strings.HasPrefix(name, "fs.mqueue.") || slices.Contains(ipcSysctls, name):
			if hostIPC {
				return fmt.Errorf("sysctls: %s in a pod with the host's IPC namespace: %w", name, errdefs.ErrInvalidArgument)
			}
		case name == "kernel.domainname":
			if hostNet { // which has the host's UTS namespace too
				return fmt.Errorf("sysctls: %s in a pod on the host's network: %w", name, errdefs.ErrInvalidArgument)
			}
		default:
			return fmt.Errorf("sysctls: %s belongs to no namespace of a pod, it would change the node: %w", name, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}
