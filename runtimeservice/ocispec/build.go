package ocispec

import (
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Build makes the OCI spec of a container. The warnings say what is not quite
// as asked for and why. An error is of kind errdefs.ErrInvalidArgument (the
// request or the image is at fault), ErrNotImplemented (Gantry is) or
// ErrFailedPrecondition (the node is) and names the field; one about a
// recursive read-only mount begins with RROUnsupported.
func Build(n Node, p Pod, c Container) (*specs.Spec, []string, error) {
	sc := c.Config.GetLinux().GetSecurityContext()
	if err := refuse(p, c); err != nil {
		return nil, nil, err
	}
	proc, warnings, err := process(n, p, c)
	if err != nil {
		return nil, nil, err
	}
	spec := &specs.Spec{
		Version: ociVersion(n),
		Process: proc,
		Root:    &specs.Root{Path: c.Rootfs, Readonly: sc.GetReadonlyRootfs()},
		Linux:   &specs.Linux{CgroupsPath: c.CgroupsPath},
	}
	if spec.Mounts, spec.Linux.RootfsPropagation, err = mounts(n, p, c); err != nil {
		return nil, nil, err
	}
	if spec.Linux.Namespaces, err = namespaces(n, p, c); err != nil {
		return nil, nil, err
	}
	if p.UserNS != nil {
		spec.Linux.UIDMappings, spec.Linux.GIDMappings = p.UserNS.mappings()
	}
	if spec.Linux.Resources, err = Resources(n, c.Config.GetLinux().GetResources()); err != nil {
		return nil, nil, err
	}
	warnings = append(warnings, resourceWarnings(n, c.Config.GetLinux().GetResources())...)
	spec.Linux.Resources.Devices = deviceRules(c)
	devices, more, err := deviceNodes(c, spec.Mounts)
	if err != nil {
		return nil, nil, err
	}
	spec.Linux.Devices = devices
	if p.UserNS != nil {
		if spec.Linux.Devices, spec.Mounts, err = mountDevices(c, devices, spec.Mounts); err != nil {
			return nil, nil, err
		}
	}
	warnings = append(warnings, more...)
	if more, err = confine(n, c, spec); err != nil {
		return nil, nil, err
	}
	warnings = append(warnings, more...)
	if spec.Annotations, err = n.Annotations.apply(p.Config.GetAnnotations(), c.Config.GetAnnotations()); err != nil {
		return nil, nil, err
	}
	SetUnitProperties(n, spec)
	if err := applyCDI(spec, c); err != nil {
		return nil, nil, err
	}
	if err := checkContainerSpec(n, spec, sc); err != nil {
		return nil, nil, fmt.Errorf("container %s: %w", c.ID, err)
	}
	return spec, warnings, nil
}

// refuse finds what is not honoured yet and has no better place to be refused in.
func refuse(p Pod, c Container) error {
	if c.Config.GetLinux().GetSecurityContext().GetPrivileged() && !p.Config.GetLinux().GetSecurityContext().GetPrivileged() {
		return fmt.Errorf("privileged: the container is, its pod is not: %w", errdefs.ErrInvalidArgument)
	}
	user := c.User
	if c.CDI != nil {
		user.Groups = slices.Concat(user.Groups, c.CDI.GIDs)
	}
	if err := p.UserNS.has(user); err != nil {
		return err
	}
	return nil
}

func ociVersion(n Node) string {
	if n.OCIVersion == "" {
		return "1.0.2"
	}
	return n.OCIVersion
}
