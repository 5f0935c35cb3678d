package ocispec

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// Values hold what values of namespaced sysctls are made of, without a sign
// that could start another assignment for whoever joins several
// (CVE-2022-0811). A part of a name begins and ends with a letter or digit, so
// that none is "..".
var (
	sysctlPart  = regexp.MustCompile(`^[a-z0-9]([-_.a-z0-9]*[a-z0-9])?$`)
	sysctlValue = regexp.MustCompile(`^[A-Za-z0-9_.,:/ \t-]*$`)
)

// ipcSysctls belong to the IPC namespace (ipc_namespaces(7)).
var ipcSysctls = []string{
	"kernel/auto_msgmni", "kernel/msg_next_id", "kernel/msgmax", "kernel/msgmnb",
	"kernel/msgmni", "kernel/sem", "kernel/sem_next_id", "kernel/shm_next_id",
	"kernel/shm_rmid_forced", "kernel/shmall", "kernel/shmmax", "kernel/shmmni",
}

// Sysctls are the sysctls of a pod as files below /proc/sys and what to write
// to them. Each must belong to a namespace that the pod has of its own: on the
// host's network or IPC it would change the host (CVE-2022-0532), as would one
// that belongs to no namespace.
func Sysctls(asked map[string]string, hostNet, hostIPC bool) (files map[string]string, err error) {
	files = make(map[string]string, len(asked))
	names := make(map[string]string, len(asked))
	for _, name := range slices.Sorted(maps.Keys(asked)) {
		refuse := func(why string) error {
			return fmt.Errorf("sysctls: %.256q %s: %w", name, why, errdefs.ErrInvalidArgument)
		}
		file, ok := sysctlFile(name)
		if !ok {
			return nil, refuse("is no name of a sysctl")
		}
		if first, twice := names[file]; twice {
			return nil, refuse(fmt.Sprintf("is the same as %q", first))
		}
		if value := asked[name]; len(value) > 4096 || !sysctlValue.MatchString(value) {
			return nil, refuse("has a value with characters that no value has")
		}
		switch {
		case strings.HasPrefix(file, "net/"), file == "kernel/domainname":
			if hostNet { // which has the host's UTS namespace too
				return nil, refuse("would change the node, the pod is on the host's network")
			}
		case strings.HasPrefix(file, "fs/mqueue/") || slices.Contains(ipcSysctls, file):
			if hostIPC {
				return nil, refuse("would change the node, the pod has the host's IPC namespace")
			}
		case file == "kernel/hostname":
			return nil, refuse("is set by the pod's hostname")
		default:
			return nil, refuse("belongs to no namespace of a pod, it would change the node")
		}
		names[file], files[file] = name, asked[name]
	}
	return files, nil
}

// sysctlFile is the file below /proc/sys of a sysctl's name. The sign that
// comes first separates, and the other one is part of names, as sysctl(8) has
// it: net/ipv4/conf/eth0.1/forwarding is net.ipv4.conf.eth0/1.forwarding.
func sysctlFile(name string) (file string, ok bool) {
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '.' {
		name = strings.NewReplacer(".", "/", "/", ".").Replace(name)
	}
	parts := strings.Split(name, "/")
	for _, p := range parts {
		if !sysctlPart.MatchString(p) {
			return "", false
		}
	}
	return name, len(parts) > 1 && len(name) <= 253
}
