package runtimeservice

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox/inroot"
)

// Image volumes: mounts whose source is an image, or a part of one, that the
// kubelet has pulled. They are read-only whatever the request says.

// volumeFailed begins every error about one: the kubelet tells it from others
// by that, as with RROUnsupported (cri-api's ErrImageVolumeMountFailed).
func volumeFailed(i int, err error) error {
	return fmt.Errorf("ImageVolumeMountFailed: mounts[%d].image: %w", i, err)
}

// withImageIDs is the config with the image of each volume named by its id.
// The status of the container shows it so, and the kubelet's garbage collection
// compares that with the ids of images.
func (s *containers) withImageIDs(ctx context.Context, cc *runtimeapi.ContainerConfig) (*runtimeapi.ContainerConfig, error) {
	if !slices.ContainsFunc(cc.GetMounts(), func(m *runtimeapi.Mount) bool { return m.GetImage() != nil }) {
		return cc, nil
	}
	cc = proto.CloneOf(cc)
	for i, m := range cc.GetMounts() {
		if m.GetImage() == nil {
			continue
		}
		ref := m.GetImage().GetImage()
		if ref == "" {
			return nil, volumeFailed(i, fmt.Errorf("it names no image: %w", errdefs.ErrInvalidArgument))
		}
		img, err := s.images.Resolve(ctx, ref)
		if errdefs.IsNotFound(err) {
			err = fmt.Errorf("image %q is not on this node, pull it first: %w", ref, errdefs.ErrFailedPrecondition)
		}
		if err != nil {
			return nil, volumeFailed(i, err)
		}
		m.Image.Image, m.Image.ImageRef = img.ID, imageRef(img)
	}
	return cc, nil
}

// volumeSource is the path on the host of a part of an image volume: "" is all
// of it. Links in the image lead where they lead within the image.
func volumeSource(root, subPath string) (string, error) {
	if path.IsAbs(subPath) || slices.Contains(strings.Split(subPath, "/"), "..") {
		return "", fmt.Errorf("image_sub_path %q is not a relative path without \"..\": %w", subPath, errdefs.ErrInvalidArgument)
	}
	if subPath == "" {
		return root, nil
	}
	source, err := inroot.Resolve(root, subPath)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("image_sub_path %q is not in the image: %w", subPath, errdefs.ErrInvalidArgument)
	case err != nil:
		return "", fmt.Errorf("image_sub_path %q: %w: %w", subPath, err, errdefs.ErrInvalidArgument)
	}
	info, err := os.Lstat(source)
	if err != nil {
		return "", err
	}
	if !info.IsDir() && !info.Mode().IsRegular() {
		return "", fmt.Errorf("image_sub_path %q is neither a directory nor a regular file but %v: %w", subPath, info.Mode().Type(), errdefs.ErrInvalidArgument)
	}
	return source, nil
}
