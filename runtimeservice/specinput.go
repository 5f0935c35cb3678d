package runtimeservice

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/runtimeservice/lifecycle"
	"github.com/gantry-cri/gantry/runtimeservice/ocispec"
	"github.com/gantry-cri/gantry/sandbox"
	"github.com/gantry-cri/gantry/sandbox/apparmor"
	"github.com/gantry-cri/gantry/sandbox/hostwork"
	"github.com/gantry-cri/gantry/sandbox/inroot"
)

// What a container's OCI spec depends on beside the request: looked up here on
// the host and in the image, so that package ocispec needs to look nothing up.

const (
	maxPasswd         = 10 << 20 // bytes of an image's passwd or group file
	nameMax           = 255      // bytes of one part of a path, NAME_MAX
	maxSeccompProfile = 1 << 20  // bytes of a localhost seccomp profile
)

// checkRootfs refuses an image whose mount points for the kernel's own file
// systems are anything but directories: OCI runtimes have followed such a
// symbolic link to the host (CVE-2019-19921, CVE-2026-41579).
func checkRootfs(rootfs string) error {
	for _, name := range []string{"dev", "proc", "sys"} {
		info, err := os.Lstat(filepath.Join(rootfs, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if !info.IsDir() {
			return fmt.Errorf("the image has /%s as %v, it must be a directory: %w", name, info.Mode().Type(), errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// imageVolumes are the paths that the image declares as volumes, each with the
// directory of the container's own root file system that is mounted there: it
// holds what the image has in it, is writable below a read-only root too, and
// goes with the container.
func imageVolumes(img imagespec.ImageConfig, cc *runtimeapi.ContainerConfig, rootfs string, userns *ocispec.UserNS) (map[string]string, error) {
	targets, err := ocispec.ImageVolumes(img, cc.GetMounts())
	if err != nil {
		return nil, err
	}
	volumes := make(map[string]string, len(targets))
	uid, gid := userns.Host(0, 0)
	for _, target := range targets {
		if err := inroot.MkdirAll(rootfs, target, 0o755, int(uid), int(gid)); err != nil {
			return nil, fmt.Errorf("making the image's volume %q: %w", target, err)
		}
		if volumes[target], err = inroot.Resolve(rootfs, target); err != nil {
			return nil, fmt.Errorf("the image's volume %q: %w", target, err)
		}
	}
	return volumes, nil
}

// resolveUser finds the container's user in the request, the image's config
// and the image's passwd and group files.
func resolveUser(cc *runtimeapi.ContainerConfig, imageUser, rootfs string) (ocispec.User, error) {
	var files [2][]byte
	for i, name := range []string{"/etc/passwd", "/etc/group"} {
		data, err := inroot.ReadFile(rootfs, name, maxPasswd)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return ocispec.User{}, fmt.Errorf("reading the image's %s: %w: %w", name, err, errdefs.ErrInvalidArgument)
		}
		files[i] = data
	}
	return ocispec.ResolveUser(cc.GetLinux().GetSecurityContext(), imageUser, files[0], files[1])
}

// mounts resolves the sources of the request's mounts.
func (s *containers) mounts(ctx context.Context, c *container) (list []ocispec.Mount, err error) {
	userns, err := s.openUserNS(c)
	if err != nil {
		return nil, err
	}
	defer userns.Close()
	for i, m := range c.config.GetMounts() {
		om := ocispec.Mount{CRI: m}
		if m.GetImage() == nil {
			if om, err = s.hostMount(ctx, m, userns); err != nil {
				return nil, fmt.Errorf("mounts[%d].%w", i, err)
			}
		} else {
			root, err := s.images.MountVolume(ctx, c.id, m.GetImage().GetImage())
			if err != nil {
				return nil, volumeFailed(i, err)
			}
			if om.Source, err = volumeSource(root, m.GetImageSubPath()); err != nil {
				return nil, volumeFailed(i, err)
			}
		}
		list = append(list, om)
	}
	return list, nil
}

// hostMount resolves the source of a mount. A missing one is made as a
// directory, as both peers do; a symbolic link is followed once, here, and what
// it led to is mounted. userns is what its owners are to be mapped to, nil for none.
func (s *containers) hostMount(ctx context.Context, m *runtimeapi.Mount, userns *sandbox.UserNS) (ocispec.Mount, error) {
	src := m.GetHostPath()
	if !path.IsAbs(src) {
		return ocispec.Mount{}, fmt.Errorf("host_path %q is not absolute: %w", src, errdefs.ErrInvalidArgument)
	}
	if why := tooLong(src); why != "" { // before half of it is made
		return ocispec.Mount{}, fmt.Errorf("host_path %.64q... has %s: %w", src, why, errdefs.ErrInvalidArgument)
	}
	p, err := s.host.OpenPath(ctx, src)
	if err != nil {
		return ocispec.Mount{}, fmt.Errorf("host_path: %w", err)
	}
	defer p.Close()
	om := ocispec.Mount{CRI: m, Source: p.Name}
	if m.GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_PRIVATE {
		if om.Shared, om.Slave, err = p.Propagation(); err != nil {
			return ocispec.Mount{}, fmt.Errorf("propagation: %w", err)
		}
	}
	if len(m.GetUidMappings()) > 0 && userns != nil {
		if err := userns.CanMap(p); err != nil {
			return ocispec.Mount{}, fmt.Errorf("uidMappings: host_path %q: %w", src, err)
		}
	}
	return om, nil
}

// tooLong says why the kernel takes no such path, "" if it does.
func tooLong(p string) string {
	if len(p) >= unix.PathMax {
		return fmt.Sprintf("%d bytes, the kernel takes %d", len(p), unix.PathMax-1)
	}
	for part := range strings.SplitSeq(p, "/") {
		if len(part) > nameMax {
			return fmt.Sprintf("a part of %d bytes, the kernel takes %d", len(part), nameMax)
		}
	}
	return ""
}

// devices finds the device nodes of the request, and for a privileged
// container those of the whole host.
func (s *containers) devices(ctx context.Context, cc *runtimeapi.ContainerConfig, h Handler, in *ocispec.Container) error {
	sc := cc.GetLinux().GetSecurityContext()
	in.AllDevices = sc.GetPrivileged() && !h.PrivilegedWithoutHostDevices
	var asked []hostwork.Device
	for _, d := range cc.GetDevices() {
		asked = append(asked, hostwork.Device{HostPath: d.GetHostPath(), ContainerPath: d.GetContainerPath(), Permissions: d.GetPermissions()})
	}
	found, err := s.host.Paths().Devices(ctx, in.AllDevices, asked)
	if err != nil {
		return err
	}
	in.Devices, in.DeviceRules = found.All, found.Rules
	in.DeviceSources = make(map[string]string, len(cc.GetDevices()))
	for i, d := range cc.GetDevices() {
		nodes := found.Nodes[i]
		if s.cfg.DeviceOwnership {
			ownDevices(nodes, sc)
		}
		for _, node := range nodes {
			within := strings.TrimPrefix(node.Path, path.Clean(cmp.Or(d.GetContainerPath(), d.GetHostPath())))
			in.DeviceSources[node.Path] = filepath.Join(d.GetHostPath(), within)
		}
		in.Devices = append(in.Devices, nodes...)
	}
	return nil
}

// ownDevices gives device nodes to the user and group that the security
// context names, for on the host they are root's mostly. The image's user has
// no say, as with both peers.
func ownDevices(nodes []specs.LinuxDevice, sc *runtimeapi.LinuxContainerSecurityContext) {
	for i := range nodes {
		if u := sc.GetRunAsUser(); u != nil {
			uid := uint32(u.GetValue()) // its range has been checked with the user
			nodes[i].UID = &uid
		}
		if g := sc.GetRunAsGroup(); g != nil {
			gid := uint32(g.GetValue())
			nodes[i].GID = &gid
		}
	}
}

// localhostProfile reads the seccomp profile that the request names on this host, if it does.
func (s *containers) localhostProfile(ctx context.Context, cc *runtimeapi.ContainerConfig) ([]byte, error) {
	ref, err := ocispec.SeccompPath(s.node, cc.GetLinux().GetSecurityContext())
	if err != nil || ref == "" {
		return nil, err
	}
	data, err := s.host.Paths().ReadFile(ctx, ref, maxSeccompProfile)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	return data, nil
}

// loadAppArmor makes sure that the kernel has the AppArmor profile that the
// container runs under. The default one is loaded at start, and again here if
// somebody has removed it: aa-remove-unknown(8) does.
func (s *containers) loadAppArmor(ctx context.Context, cc *runtimeapi.ContainerConfig) error {
	profile, err := ocispec.AppArmorProfile(s.node, cc.GetLinux().GetSecurityContext())
	if err != nil || profile == "" {
		return err
	}
	switch loaded, err := apparmor.Loaded(profile); {
	case err != nil || loaded:
		return err
	case profile == apparmor.DefaultProfile:
		return apparmor.Load(ctx)
	}
	return fmt.Errorf("apparmor: profile %q is not loaded on this node, load it with apparmor_parser: %w", profile, errdefs.ErrFailedPrecondition)
}

// targetPID is the PID namespace of the container that the request wants to
// share it with, pinned for this one.
func (s *containers) targetPID(c *container) (string, error) {
	ns := c.config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if ns.GetPid() != runtimeapi.NamespaceMode_TARGET {
		return "", nil
	}
	target, err := s.index.container(ns.GetTargetId())
	if err != nil || target.pod != c.pod {
		return "", fmt.Errorf("namespace_options.target_id %q is no container of this pod: %w", ns.GetTargetId(), errdefs.ErrInvalidArgument)
	}
	target.mu.Lock()
	state, pid := target.state, target.pid
	target.mu.Unlock()
	if state != lifecycle.ContainerRunning {
		return "", targetEnded(target.id, state)
	}
	path, err := s.host.PinTarget(c.id, pid, target.cgroup)
	if err != nil {
		return "", fmt.Errorf("namespace_options.target_id: container %s: %w", target.id, err)
	}
	return path, nil
}

func targetEnded(id string, state lifecycle.Container) error {
	return fmt.Errorf("namespace_options.target_id: container %s is %v, not running: %w", id, state, errdefs.ErrFailedPrecondition)
}

// checkTarget refuses to start a container in the PID namespace of one that
// has ended: the kernel would say no more than that it has no memory.
func (s *containers) checkTarget(c *container) error {
	ns := c.getConfig().GetLinux().GetSecurityContext().GetNamespaceOptions()
	if ns.GetPid() != runtimeapi.NamespaceMode_TARGET {
		return nil
	}
	target, err := s.index.container(ns.GetTargetId())
	if err != nil {
		return targetEnded(ns.GetTargetId(), lifecycle.ContainerGone)
	}
	if state := target.getState(); state != lifecycle.ContainerRunning {
		return targetEnded(target.id, state)
	}
	return nil
}
