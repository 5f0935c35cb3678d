package ocispec

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// cdiAnnotation begins the keys of container annotations that name CDI
// devices; what follows says who asks. Device plugins without the field use it.
const cdiAnnotation = "cdi.k8s.io/"

// CDIEdits are what CDI devices want a container to have beside device nodes
// and their rules, which are among [Container]'s Devices and DeviceRules. It is
// the node's, not the request's: from specs that root has written.
type CDIEdits struct {
	Env    []string // NAME=value
	Mounts []specs.Mount
	Hooks  *specs.Hooks
	GIDs   []uint32
}

// CDIDevices are the names of the CDI devices that a container asks for, by
// CDI_devices and by annotations, each once. Those of pods and images count nothing.
func CDIDevices(cfg *runtimeapi.ContainerConfig) ([]string, error) {
	var names []string
	for i, d := range cfg.GetCDIDevices() {
		if d.GetName() == "" {
			return nil, fmt.Errorf("CDI_devices[%d]: the name is empty: %w", i, errdefs.ErrInvalidArgument)
		}
		names = append(names, d.GetName())
	}
	for _, key := range slices.Sorted(maps.Keys(cfg.GetAnnotations())) {
		if !strings.HasPrefix(key, cdiAnnotation) {
			continue
		}
		for name := range strings.SplitSeq(cfg.GetAnnotations()[key], ",") {
			if name == "" {
				return nil, fmt.Errorf("annotations: %q: a CDI device's name is empty: %w", key, errdefs.ErrInvalidArgument)
			}
			names = append(names, name)
		}
	}
	seen := make(map[string]bool, len(names))
	return slices.DeleteFunc(names, func(name string) bool {
		twice := seen[name]
		seen[name] = true
		return twice
	}), nil
}

// applyCDI adds what CDI devices want, but for mounts and nodes, which are
// ordered among the others.
func applyCDI(spec *specs.Spec, c Container) error {
	names, err := CDIDevices(c.Config)
	if err != nil {
		return err
	}
	if c.CDI == nil {
		if len(names) > 0 {
			return fmt.Errorf("CDI_devices: %q was not prepared: %w", names[0], errdefs.ErrFailedPrecondition)
		}
		return nil
	}
	vars := envVars{}
	for _, e := range slices.Concat(spec.Process.Env, c.CDI.Env) {
		if err := checkText(e); err != nil {
			return fmt.Errorf("CDI devices: env: %w", err)
		}
		key, value, _ := strings.Cut(e, "=")
		vars.set(key, value)
	}
	spec.Process.Env = vars.list
	if err := checkArgSpace(spec.Process.Args, spec.Process.Env); err != nil {
		return fmt.Errorf("with the env of its CDI devices: %w", err)
	}
	for _, gid := range c.CDI.GIDs {
		if !slices.Contains(spec.Process.User.AdditionalGids, gid) {
			spec.Process.User.AdditionalGids = append(spec.Process.User.AdditionalGids, gid)
		}
	}
	spec.Hooks = c.CDI.Hooks
	return nil
}

// cdiMounts are the mounts that CDI devices want. Those that would take the
// place of what Gantry mounts for every container are refused.
func cdiMounts(c Container) ([]specs.Mount, error) {
	if c.CDI == nil {
		return nil, nil
	}
	for _, m := range c.CDI.Mounts {
		target, err := mountTarget(m.Destination)
		if err != nil {
			return nil, fmt.Errorf("CDI devices: a mount's containerPath: %w", err)
		}
		if target != m.Destination || beneath(target, "/proc") || slices.Contains([]string{"/dev", "/sys", "/sys/fs/cgroup"}, target) {
			return nil, fmt.Errorf("CDI devices: a mount's containerPath: %q is no place for it: %w", m.Destination, errdefs.ErrInvalidArgument)
		}
	}
	return c.CDI.Mounts, nil
}

// checkHooks: whatever runs on the host in a container's name has a path and
// an environment that the node chose: one without any would be given the
// container's, whose LD_PRELOAD is the image's (CVE-2025-23266).
func checkHooks(h *specs.Hooks) error {
	if h == nil {
		return nil
	}
	//lint:ignore SA1019 CDI specs still have prestart hooks
	all := slices.Concat(h.Prestart, h.CreateRuntime, h.CreateContainer, h.StartContainer, h.Poststart, h.Poststop)
	if len(all) == 0 {
		return errors.New("hooks that are none")
	}
	for _, hook := range all {
		if !path.IsAbs(hook.Path) || path.Clean(hook.Path) != hook.Path || len(hook.Env) == 0 {
			return fmt.Errorf("hook %q without an absolute path or an environment of its own", hook.Path)
		}
	}
	return nil
}
