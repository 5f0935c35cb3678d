package ocispec

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// checkSpec holds what is true of every spec, whatever was asked for. It is
// the last thing before a spec leaves the package; an error is a bug of this
// package, or of its caller, and keeps the container from being made.
func checkSpec(n Node, s *specs.Spec) error {
	for _, check := range []func(Node, *specs.Spec) error{checkProcess, checkIsolation, checkDevices} {
		if err := check(n, s); err != nil {
			return fmt.Errorf("the spec breaks an invariant: %w", err)
		}
	}
	return nil
}

// checkContainerSpec adds what is true of containers that are not privileged.
func checkContainerSpec(n Node, s *specs.Spec, sc *runtimeapi.LinuxContainerSecurityContext) error {
	if err := checkSpec(n, s); err != nil {
		return err
	}
	if len(s.Process.Capabilities.Ambient) > 0 && len(sc.GetCapabilities().GetAddAmbientCapabilities()) == 0 {
		return errors.New("the spec breaks an invariant: ambient capabilities that nobody asked for")
	}
	if sc.GetPrivileged() {
		return nil
	}
	for _, m := range s.Mounts {
		kernel := m.Type == "sysfs" || m.Type == "cgroup" && !n.writableCgroups()
		if kernel && !slices.Contains(m.Options, "ro") {
			return fmt.Errorf("the spec breaks an invariant: %s is writable", m.Destination)
		}
	}
	for _, r := range s.Linux.Resources.Devices {
		if r.Allow && (r.Major == nil || r.Type != "c" && r.Type != "b") {
			return errors.New("the spec breaks an invariant: a device rule allows whole classes")
		}
	}
	if n.Cgroup2 && !hasNamespace(s, specs.CgroupNamespace) {
		return errors.New("the spec breaks an invariant: no cgroup namespace of its own")
	}
	return nil
}

func checkProcess(n Node, s *specs.Spec) error {
	p := s.Process
	switch {
	case len(p.Args) == 0 || p.Args[0] == "":
		return errors.New("no program")
	case !path.IsAbs(p.Cwd) || path.Clean(p.Cwd) != p.Cwd || strings.HasPrefix(p.Cwd, "/proc/"):
		return fmt.Errorf("working directory %q", p.Cwd)
	case p.User.UID > maxID || p.User.GID > maxID || p.User.Username != "":
		return fmt.Errorf("user %d, group %d", p.User.UID, p.User.GID)
	case len(p.User.AdditionalGids) == 0 || p.User.AdditionalGids[0] != p.User.GID:
		return fmt.Errorf("the primary group %d does not lead the groups %v", p.User.GID, p.User.AdditionalGids)
	case p.Capabilities == nil || !slices.Equal(p.Capabilities.Inheritable, p.Capabilities.Ambient):
		return errors.New("inheritable capabilities that are not ambient")
	case p.OOMScoreAdj == nil || *p.OOMScoreAdj < n.MinOOMScoreAdj || *p.OOMScoreAdj > 1000:
		return errors.New("oom_score_adj")
	case len(p.Rlimits) == 0:
		return errors.New("no rlimits")
	}
	return nil
}

func checkIsolation(n Node, s *specs.Spec) error {
	switch {
	case !path.IsAbs(s.Root.Path) || path.Clean(s.Root.Path) != s.Root.Path || s.Root.Path == "/":
		return fmt.Errorf("root file system %q", s.Root.Path)
	case len(s.Linux.Sysctl) > 0:
		return errors.New("sysctls")
	case !n.allowsAnnotations(s.Annotations):
		return errors.New("annotations that the handler does not allow")
	case s.Hostname != "" || s.Domainname != "":
		return errors.New("a host name, which is the pod's")
	case n.Systemd && strings.Count(s.Linux.CgroupsPath, ":") != 2,
		!n.Systemd && (!path.IsAbs(s.Linux.CgroupsPath) || path.Dir(s.Linux.CgroupsPath) == "/"):
		return fmt.Errorf("cgroup path %q", s.Linux.CgroupsPath)
	}
	if err := checkHooks(s.Hooks); err != nil {
		return err
	}
	seen := map[specs.LinuxNamespaceType]bool{}
	for _, ns := range s.Linux.Namespaces {
		if seen[ns.Type] || ns.Path != "" && !path.IsAbs(ns.Path) || ns.Type == specs.MountNamespace && ns.Path != "" {
			return fmt.Errorf("namespace %s at %q", ns.Type, ns.Path)
		}
		seen[ns.Type] = true
	}
	if !seen[specs.MountNamespace] {
		return errors.New("no mount namespace of its own")
	}
	for _, target := range []string{"/proc", "/dev"} {
		if !slices.ContainsFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == target }) {
			return fmt.Errorf("no mount at %s", target)
		}
	}
	for _, m := range s.Mounts {
		if !path.IsAbs(m.Destination) || path.Clean(m.Destination) != m.Destination || m.Destination == "/" {
			return fmt.Errorf("mount at %q", m.Destination)
		}
		if m.Type == "devpts" && !slices.Contains(m.Options, "newinstance") {
			return errors.New("devpts of the host")
		}
	}
	return nil
}

func checkDevices(_ Node, s *specs.Spec) error {
	rules := s.Linux.Resources.Devices
	if len(rules) == 0 || rules[0].Allow || rules[0].Type != "" || rules[0].Major != nil || rules[0].Minor != nil || rules[0].Access != "rwm" {
		return errors.New("the device rules do not begin by denying all")
	}
	return nil
}

func hasNamespace(s *specs.Spec, kind specs.LinuxNamespaceType) bool {
	return slices.ContainsFunc(s.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == kind })
}
