package ocispec

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// procFiles are the places below /proc that may be mounted over: files that
// lxcfs and others replace. OCI runtimes refuse all others, since whoever
// replaces a part of /proc can feed lies to what protects the container.
var procFiles = []string{
	"/proc/cpuinfo", "/proc/diskstats", "/proc/loadavg", "/proc/meminfo",
	"/proc/slabinfo", "/proc/stat", "/proc/swaps", "/proc/uptime",
}

// devEntries are made by the OCI runtime below its own /dev. It opens
// /dev/null for masked paths and /dev/ptmx and /dev/console for terminals, so
// none may be another thing than it thinks (CVE-2025-31133, CVE-2025-52565).
var devEntries = []string{
	"/dev/null", "/dev/console", "/dev/ptmx", "/dev/pts", "/dev/fd",
	"/dev/stdin", "/dev/stdout", "/dev/stderr",
}

// bindOptions are what mount_options may hold.
var bindOptions = []string{"noexec", "nosuid", "nodev"}

// ValidateMount checks all of a CRI mount that can be known without looking at
// the host, and returns the cleaned container path. An error about
// recursive_read_only on a node that lacks it begins with RROUnsupported, which
// is what the kubelet looks for.
func ValidateMount(n Node, m *runtimeapi.Mount) (target string, err error) {
	target, err = mountTarget(m.GetContainerPath())
	if err != nil {
		return "", fmt.Errorf("mount: container_path: %w", err)
	}
	refuse := func(kind error, format string, args ...any) (string, error) {
		return "", fmt.Errorf("mount %s: %s: %w", target, fmt.Sprintf(format, args...), kind)
	}
	switch {
	case m.GetImage() != nil && m.GetHostPath() != "":
		return refuse(errdefs.ErrInvalidArgument, "both host_path and image are given")
	case m.GetImage() == nil && m.GetHostPath() == "":
		return refuse(errdefs.ErrInvalidArgument, "neither host_path nor image is given")
	case m.GetImage() == nil && m.GetImageSubPath() != "":
		return refuse(errdefs.ErrInvalidArgument, "image_sub_path %q without an image", m.GetImageSubPath())
	case m.GetImage() != nil && m.GetPropagation() == runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		return refuse(errdefs.ErrInvalidArgument, "an image volume with propagation %s", m.GetPropagation())
	}
	for _, o := range m.GetMountOptions() {
		if !slices.Contains(bindOptions, o) {
			return refuse(errdefs.ErrInvalidArgument, "mount_options: %q is none of %s", o, strings.Join(bindOptions, ", "))
		}
	}
	if !m.GetRecursiveReadOnly() {
		return target, nil
	}
	switch {
	case !m.GetReadonly():
		return refuse(errdefs.ErrInvalidArgument, "recursive_read_only without readonly")
	case m.GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		return refuse(errdefs.ErrInvalidArgument, "recursive_read_only with propagation %s", m.GetPropagation())
	case !n.RecursiveReadOnly:
		return "", fmt.Errorf("RROUnsupported: mount %s: recursive_read_only needs Linux 5.12 and an OCI runtime with the mount option rro: %w",
			target, errdefs.ErrFailedPrecondition)
	}
	return target, nil
}

// mountTarget is a path in the container where something may be mounted.
func mountTarget(p string) (string, error) {
	clean, err := cleanPath(p)
	if err != nil {
		return "", err
	}
	switch {
	case clean == "/":
		return "", fmt.Errorf("%q is the container's root: %w", p, errdefs.ErrInvalidArgument)
	case beneath(clean, "/proc") && clean != "/proc" && !slices.Contains(procFiles, clean):
		return "", fmt.Errorf("%q lies in /proc, where nothing can be mounted: %w", p, errdefs.ErrInvalidArgument)
	case slices.ContainsFunc(devEntries, func(d string) bool { return beneath(clean, d) }):
		return "", fmt.Errorf("%q is the runtime's own: %w", p, errdefs.ErrInvalidArgument)
	}
	return clean, nil
}
