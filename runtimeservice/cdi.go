package runtimeservice

import (
	"context"
	"maps"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/runtimeservice/ocispec"
)

// cdiDevices finds the CDI devices that a container asks for, and puts what
// they want into in. Its user is known by then.
//
// Their rules are part of the OCI spec, and so of the device filter that the
// OCI runtime hands to systemd: a daemon-reload does not take them away, as it
// does those that are written to the cgroup behind the runtime's back.
func (s *containers) cdiDevices(ctx context.Context, cc *runtimeapi.ContainerConfig, in *ocispec.Container) error {
	names, err := ocispec.CDIDevices(cc)
	if err != nil || len(names) == 0 {
		return err
	}
	edits, err := s.host.Paths().CDIEdits(ctx, s.cfg.CDISpecDirs, names)
	if err != nil {
		return err
	}
	uid, gid := in.User.UID, in.User.GID
	for _, d := range edits.Devices {
		if d.UID == nil && uid > 0 {
			d.UID = &uid
		}
		if d.GID == nil && gid > 0 {
			d.GID = &gid
		}
		in.Devices = append(in.Devices, d)
	}
	maps.Copy(in.DeviceSources, edits.Sources)
	in.DeviceRules = append(in.DeviceRules, edits.Rules...)
	in.CDI = &ocispec.CDIEdits{Env: edits.Env, Mounts: edits.Mounts, Hooks: edits.Hooks, GIDs: edits.GIDs}
	return nil
}
