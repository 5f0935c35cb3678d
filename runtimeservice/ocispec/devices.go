package ocispec

import (
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// defaultDevices are the character devices that the OCI runtime makes in every
// container (OCI runtime spec, "Default Devices"), as major and minor; -1 is any.
var defaultDevices = [][2]int64{
	{1, 3}, // null
	{1, 5}, // zero
	{1, 7}, // full
	{1, 8}, // random
	{1, 9}, // urandom
	{5, 0}, // tty
	{5, 1}, // console
	{5, 2}, // ptmx
	{136, -1},
}

// deviceRules begin by forbidding all, for an OCI runtime reads a list without
// that as permission for what it does not name (GHSA-g54h-m393-cpwq).
func deviceRules(c Container) []specs.LinuxDeviceCgroup {
	rules := []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	if c.AllDevices {
		return append(rules, specs.LinuxDeviceCgroup{Allow: true, Access: "rwm"})
	}
	for _, d := range defaultDevices {
		major, minor := d[0], &d[1]
		if *minor < 0 {
			minor = nil
		}
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Minor: minor, Access: "rwm"})
	}
	return append(rules, c.DeviceRules...)
}

// deviceNodes are the nodes to make; of several at one path the last counts.
// Where the request mounts a /dev of its own nothing is made in it: that would
// be in the host's.
func deviceNodes(c Container, list []specs.Mount) (nodes []specs.LinuxDevice, warnings []string, err error) {
	ownDev := slices.ContainsFunc(list, func(m specs.Mount) bool { return m.Destination == "/dev" && m.Type == "bind" })
	index := make(map[string]int, len(c.Devices))
	for _, d := range c.Devices {
		target, err := mountTarget(d.Path)
		if err != nil && !slices.Contains(devEntries, d.Path) {
			return nil, nil, fmt.Errorf("devices: container_path: %w", err)
		}
		if beneath(target, "/proc") || beneath(target, "/sys") || target == "/dev" {
			return nil, nil, fmt.Errorf("devices: container_path: %q is no place for a device: %w", d.Path, errdefs.ErrInvalidArgument)
		}
		if i, ok := index[d.Path]; ok {
			nodes[i] = d
			continue
		}
		if ownDev && beneath(target, "/dev") {
			continue
		}
		index[d.Path] = len(nodes)
		nodes = append(nodes, d)
	}
	if ownDev && len(c.Config.GetDevices()) > 0 {
		warnings = append(warnings, "devices: no node is made below /dev, which is a mount of the request")
	}
	return nodes, warnings, nil
}

// mountDevices gives nodes to a container in a user namespace, in which none
// can be made: the host's is mounted. OCI runtimes do that themselves, with
// what the host has at the container's path, which is another device unless the
// paths are the same.
func mountDevices(c Container, nodes []specs.LinuxDevice, list []specs.Mount) (same []specs.LinuxDevice, _ []specs.Mount, err error) {
	for _, d := range nodes {
		source, ok := c.DeviceSources[d.Path]
		if !ok || source == d.Path {
			same = append(same, d)
			continue
		}
		if slices.Contains(defaultNodes, d.Path) { // which would be mounted over it
			return nil, nil, fmt.Errorf("devices: container_path %q is another device in every container of a pod with a user namespace: %w", d.Path, errdefs.ErrInvalidArgument)
		}
		list = append(list, specs.Mount{Destination: d.Path, Type: "bind", Source: source, Options: []string{"bind", "rprivate", "nosuid", "noexec"}})
	}
	return same, list, nil
}

// defaultNodes are those of defaultDevices that may be asked for as others.
var defaultNodes = []string{"/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"}
