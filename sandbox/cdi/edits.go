package cdi

import (
	"cmp"
	"fmt"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	cdispec "tags.cncf.io/container-device-interface/specs-go"
)

// Edits are what devices want a container to have, as parts of an OCI spec.
type Edits struct {
	Env     []string // NAME=value; each takes the place of an earlier one of its name
	Devices []specs.LinuxDevice
	Sources map[string]string // where on the host each of Devices is, by its path
	Rules   []specs.LinuxDeviceCgroup
	Mounts  []specs.Mount // bind mounts and others; each takes the place of one at its destination
	Hooks   *specs.Hooks  // nil if there are none; each has an environment
	GIDs    []uint32      // supplementary groups
}

// hookEnv is the environment of hooks that name none. It must not be empty: an
// OCI runtime would give such a hook its own, or the container's, whose
// LD_PRELOAD the image chooses (CVE-2025-23266).
var hookEnv = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

// Edits gives what the devices of these names, VENDOR/CLASS=NAME, want together,
// in their order, each device and each spec's common part once. An error names
// the device: errdefs.ErrInvalidArgument for a bad name, ErrFailedPrecondition
// for what this node does not have, ErrNotImplemented for what a spec wants and
// Gantry does not do.
func (c *Specs) Edits(names []string) (Edits, error) {
	devices, err := c.find(names)
	if err != nil {
		return Edits{}, fmt.Errorf("CDI device %w", err)
	}
	var out Edits
	common := map[string]bool{}
	for _, d := range devices {
		parts := []cdispec.ContainerEdits{d.ContainerEdits}
		if !common[d.path] {
			common[d.path] = true
			parts = []cdispec.ContainerEdits{d.spec.ContainerEdits, d.ContainerEdits}
		}
		for _, e := range parts {
			if err := out.add(e); err != nil {
				return Edits{}, fmt.Errorf("CDI device %q (%s): %w", d.spec.Kind+"="+d.Name, d.path, err)
			}
		}
	}
	return out, nil
}

func (out *Edits) add(e cdispec.ContainerEdits) error {
	if len(e.NetDevices) > 0 {
		return fmt.Errorf("netDevices: %q: %w", e.NetDevices[0].HostInterfaceName, errdefs.ErrNotImplemented)
	}
	if e.IntelRdt != nil {
		return fmt.Errorf("intelRdt: %w", errdefs.ErrNotImplemented)
	}
	out.Env = append(out.Env, e.Env...)
	for _, n := range e.DeviceNodes {
		node, err := hostNode(*n)
		if err != nil {
			return fmt.Errorf("device node %q: %w", n.Path, err)
		}
		out.Devices = append(out.Devices, node)
		if out.Sources == nil {
			out.Sources = make(map[string]string)
		}
		out.Sources[n.Path] = cmp.Or(n.HostPath, n.Path)
		if node.Type == "b" || node.Type == "c" {
			out.Rules = append(out.Rules, specs.LinuxDeviceCgroup{
				Allow: true, Type: node.Type, Major: &node.Major, Minor: &node.Minor, Access: cmp.Or(n.Permissions, "rwm"),
			})
		}
	}
	for _, m := range e.Mounts {
		mount, err := hostMount(*m)
		if err != nil {
			return fmt.Errorf("mount %q: %w", m.ContainerPath, err)
		}
		out.Mounts = append(out.Mounts, mount)
	}
	for _, h := range e.Hooks {
		out.addHook(*h)
	}
	for _, gid := range e.AdditionalGIDs {
		if gid != 0 { // as the CDI project's library: root's group would be a privilege
			out.GIDs = append(out.GIDs, gid)
		}
	}
	return nil
}

// hostNode completes a node with what the host's has. Nodes without an owner
// get the container's user later.
func hostNode(n cdispec.DeviceNode) (specs.LinuxDevice, error) {
	out := specs.LinuxDevice{Path: n.Path, Type: n.Type, Major: n.Major, Minor: n.Minor, FileMode: n.FileMode, UID: n.UID, GID: n.GID}
	if out.Type == "u" {
		out.Type = "c" // the same to the kernel and to the cgroup
	}
	if out.Type == "p" || out.Type != "" && (out.Major != 0 || out.Minor != 0) {
		return out, nil
	}
	path := cmp.Or(n.HostPath, n.Path)
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return out, fmt.Errorf("%w: %w", &os.PathError{Op: "stat", Path: path, Err: err}, errdefs.ErrFailedPrecondition)
	}
	kind := map[uint32]string{unix.S_IFBLK: "b", unix.S_IFCHR: "c"}[st.Mode&unix.S_IFMT]
	if kind == "" || out.Type != "" && out.Type != kind {
		return out, fmt.Errorf("%s is no device of type %q: %w", path, cmp.Or(out.Type, "b or c"), errdefs.ErrFailedPrecondition)
	}
	out.Type, out.Major, out.Minor = kind, int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	return out, nil
}

// hostMount looks that a bind mount's source is there: the OCI runtime would
// only find at the start of the container that it is not.
func hostMount(m cdispec.Mount) (specs.Mount, error) {
	out := specs.Mount{Destination: m.ContainerPath, Type: m.Type, Source: m.HostPath, Options: slices.Clone(m.Options)}
	binds := slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
	if out.Type == "" || out.Type == "none" {
		out.Type = "bind"
	}
	if out.Type != "bind" && !binds {
		return out, nil
	}
	out.Type = "bind"
	if !binds {
		out.Options = append([]string{"rbind"}, out.Options...)
	}
	var st unix.Stat_t
	if err := unix.Stat(m.HostPath, &st); err != nil {
		return out, fmt.Errorf("%w: %w", &os.PathError{Op: "stat", Path: m.HostPath, Err: err}, errdefs.ErrFailedPrecondition)
	}
	return out, nil
}

func (out *Edits) addHook(h cdispec.Hook) {
	if out.Hooks == nil {
		out.Hooks = &specs.Hooks{}
	}
	hook := specs.Hook{Path: h.Path, Args: slices.Clone(h.Args), Env: slices.Clone(h.Env), Timeout: h.Timeout}
	if len(hook.Env) == 0 {
		hook.Env = slices.Clone(hookEnv)
	}
	list := map[string]*[]specs.Hook{
		//lint:ignore SA1019 CDI specs still have them
		"prestart":        &out.Hooks.Prestart,
		"createRuntime":   &out.Hooks.CreateRuntime,
		"createContainer": &out.Hooks.CreateContainer,
		"startContainer":  &out.Hooks.StartContainer,
		"poststart":       &out.Hooks.Poststart,
		"poststop":        &out.Hooks.Poststop,
	}[h.HookName]
	*list = append(*list, hook)
}
