package ocispec

import (
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/errdefs"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ImageVolumes are the paths that the image declares as VOLUME and that no
// mount of the request covers, cleaned and in order: the caller makes a
// directory for each, filled with what the image has there, and gives it to
// Build in Container.Volumes. A declaration may not name the root, /proc, /sys,
// /dev or anything below them, for that would hide what the runtime relies on
// (CVE-2019-16884).
func ImageVolumes(image imagespec.ImageConfig, mounts []*runtimeapi.Mount) ([]string, error) {
	covered := make(map[string]bool, len(mounts))
	for _, m := range mounts {
		if target, err := cleanPath(m.GetContainerPath()); err == nil {
			covered[target] = true
		}
	}
	if len(image.Volumes) > maxMounts {
		return nil, fmt.Errorf("the image's Volumes: %d, more than %d: %w", len(image.Volumes), maxMounts, errdefs.ErrInvalidArgument)
	}
	var targets []string
	for _, v := range slices.Sorted(maps.Keys(image.Volumes)) {
		target, err := cleanPath(v)
		if err == nil && covered[target] {
			continue // the volume is never made
		}
		if err == nil {
			target, err = mountTarget(target)
		}
		if err != nil {
			return nil, fmt.Errorf("the image's Volumes: %w", err)
		}
		if beneath(target, "/proc") || beneath(target, "/sys") || beneath(target, "/dev") {
			return nil, fmt.Errorf("the image's Volumes: %q is the runtime's own: %w", v, errdefs.ErrInvalidArgument)
		}
		targets = append(targets, target)
	}
	slices.Sort(targets)
	return slices.Compact(targets), nil
}

// volumeMounts mounts the directories that were made for the image's volumes.
func volumeMounts(c Container) ([]specs.Mount, error) {
	targets, err := ImageVolumes(c.Image, c.Config.GetMounts())
	if err != nil {
		return nil, err
	}
	var list []specs.Mount
	for _, target := range targets {
		source, ok := c.Volumes[target]
		if !ok {
			return nil, fmt.Errorf("the image's volume %s has no directory: %w", target, errdefs.ErrFailedPrecondition)
		}
		list = append(list, specs.Mount{Destination: target, Type: "bind", Source: source, Options: []string{"rbind", "rprivate", "rw"}})
	}
	return list, nil
}
