package ocispec

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxMounts bounds what one container may ask for; the kernel's own limit
// (fs.mount-max, 100000) holds for the whole of a mount namespace.
const maxMounts = 4096

// mounts are those of the runtime, then those of pod, image and request with
// every one after those that lie above it, and the propagation of the root.
//
// A mount of the request takes the place of one of the runtime's at the same
// path, and one at /dev that of all below /dev: hosts' /dev and /sys are given
// to drivers that way.
func mounts(n Node, p Pod, c Container) (list []specs.Mount, propagation string, err error) {
	asked, propagation, err := requestMounts(n, p, c)
	if err != nil {
		return nil, "", err
	}
	covered := make(map[string]bool, len(asked))
	for _, m := range asked {
		covered[m.Destination] = true
	}
	volumes, err := volumeMounts(c)
	if err != nil {
		return nil, "", err
	}
	devices, err := cdiMounts(c)
	if err != nil {
		return nil, "", err
	}
	for _, m := range devices {
		covered[m.Destination] = true
		asked = slices.DeleteFunc(asked, func(o specs.Mount) bool { return o.Destination == m.Destination })
	}
	for _, m := range slices.Concat(runtimeMounts(n, p, c), podMounts(p, c)) {
		if !covered[m.Destination] && !(covered["/dev"] && beneath(m.Destination, "/dev")) {
			list = append(list, m)
		}
	}
	// The runtime's come first in any case: /sys/fs/cgroup of the request, say,
	// must not be hidden by a /sys that is mounted after it.
	extra := slices.Concat(volumes, asked, devices)
	slices.SortStableFunc(extra, func(a, b specs.Mount) int {
		return cmp.Compare(depth(a.Destination), depth(b.Destination))
	})
	return append(list, extra...), propagation, nil
}

func depth(p string) int {
	if p == "/" {
		return 0
	}
	return strings.Count(p, "/")
}

// runtimeMounts are the file systems that every container has.
func runtimeMounts(n Node, p Pod, c Container) []specs.Mount {
	access := "ro"
	if c.Config.GetLinux().GetSecurityContext().GetPrivileged() {
		access = "rw"
	}
	cgroups := access
	if n.writableCgroups() {
		cgroups = "rw"
	}
	list := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", cgroups}},
	}
	if p.UserNS == nil {
		return list
	}
	for i, m := range list {
		switch {
		case m.Type == "sysfs" && p.NetNS == "": // a new one would be of the network namespace, which the user namespace must own
			list[i] = specs.Mount{Destination: "/sys", Type: "bind", Source: "/sys", Options: []string{"rbind", "rprivate", "nosuid", "noexec", "nodev", "ro"}}
		case m.Type == "devpts" && p.UserNS.Length <= ttyGroup:
			list[i].Options = slices.DeleteFunc(m.Options, func(o string) bool { return o == fmt.Sprintf("gid=%d", ttyGroup) })
		}
	}
	return list
}

// ttyGroup owns terminals, as on every Linux.
const ttyGroup = 5

// podMounts are the files and the shared memory that all containers of a pod
// see. A read-only root makes the files read-only too, as they stand for parts of it.
func podMounts(p Pod, c Container) []specs.Mount {
	access := "rw"
	if c.Config.GetLinux().GetSecurityContext().GetReadonlyRootfs() {
		access = "ro"
	}
	var list []specs.Mount
	for _, m := range []struct {
		target, source string
		options        []string
	}{
		{"/dev/shm", p.ShmDir, []string{"rbind", "rprivate", "rw", "nosuid", "noexec", "nodev"}},
		{"/etc/resolv.conf", p.ResolvConf, []string{"rbind", "rprivate", access}},
		{"/etc/hostname", p.HostnameFile, []string{"rbind", "rprivate", access}},
		{"/etc/hosts", p.HostsFile, []string{"rbind", "rprivate", access}},
	} {
		if m.source != "" {
			list = append(list, specs.Mount{Destination: m.target, Type: "bind", Source: m.source, Options: m.options})
		}
	}
	return list
}

// requestMounts are the mounts of the request, in its order.
func requestMounts(n Node, p Pod, c Container) (list []specs.Mount, rootPropagation string, err error) {
	if len(c.Config.GetMounts()) != len(c.Mounts) {
		return nil, "", fmt.Errorf("mounts: %d were asked for and %d prepared: %w", len(c.Config.GetMounts()), len(c.Mounts), errdefs.ErrFailedPrecondition)
	}
	if len(c.Mounts) > maxMounts {
		return nil, "", fmt.Errorf("mounts: %d, more than %d: %w", len(c.Mounts), maxMounts, errdefs.ErrInvalidArgument)
	}
	for _, m := range c.Mounts {
		target, err := ValidateMount(n, m.CRI)
		if err != nil {
			return nil, "", err
		}
		if err := p.UserNS.checkMapping(n, m.CRI); err != nil {
			return nil, "", fmt.Errorf("mount %s: %w", target, err)
		}
		if !path.IsAbs(m.Source) || path.Clean(m.Source) != m.Source {
			return nil, "", fmt.Errorf("mount %s: its source %q is not a clean absolute path: %w", target, m.Source, errdefs.ErrInvalidArgument)
		}
		if target == "/proc" && m.Source != "/proc" {
			return nil, "", fmt.Errorf("mount /proc: only the host's /proc can be mounted there, not %q: %w", m.Source, errdefs.ErrInvalidArgument)
		}
		propagation, err := m.propagation(target)
		if err == nil && propagation == "rshared" && p.UserNS != nil {
			err = fmt.Errorf("mount %s: propagation %s in a pod with a user namespace, which mounts nothing on the host: %w", target, m.CRI.GetPropagation(), errdefs.ErrInvalidArgument)
		}
		if err != nil {
			return nil, "", err
		}
		// The root must let through what the mount is to let through.
		if propagation == "rshared" || propagation == "rslave" && rootPropagation == "" {
			rootPropagation = propagation
		}
		om := specs.Mount{
			Destination: target,
			Type:        "bind",
			Source:      m.Source,
			Options:     append([]string{"rbind", propagation}, accessOptions(m.CRI)...),
		}
		if m.CRI.GetImage() == nil && len(m.CRI.GetUidMappings()) > 0 {
			om.Options = append(om.Options, "idmap")
			om.UIDMappings, om.GIDMappings = p.UserNS.mappings()
		}
		list = append(list, om)
	}
	return list, rootPropagation, nil
}

// propagation is the mount option for what was asked, which the mount that the
// source lies on must be able to give (mount_namespaces(7)).
func (m Mount) propagation(target string) (string, error) {
	refuse := func(want string) error {
		return fmt.Errorf("mount %s: propagation %s needs host path %q to lie on a %s mount; run mount --make-rshared on it: %w",
			target, m.CRI.GetPropagation(), m.CRI.GetHostPath(), want, errdefs.ErrFailedPrecondition)
	}
	if m.CRI.GetImage() != nil { // nothing is ever mounted below it on the host
		return "rprivate", nil
	}
	switch m.CRI.GetPropagation() {
	case runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		return "rprivate", nil
	case runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		if !m.Shared && !m.Slave {
			return "", refuse("shared or slave")
		}
		return "rslave", nil
	case runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		if !m.Shared {
			return "", refuse("shared")
		}
		return "rshared", nil
	}
	return "", fmt.Errorf("mount %s: propagation %d is unknown: %w", target, m.CRI.GetPropagation(), errdefs.ErrInvalidArgument)
}

func accessOptions(m *runtimeapi.Mount) []string {
	options := []string{"rw"}
	if m.GetReadonly() || m.GetImage() != nil {
		options[0] = "ro"
	}
	if m.GetRecursiveReadOnly() {
		options = append(options, "rro")
	}
	return append(options, m.GetMountOptions()...)
}
