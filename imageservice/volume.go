package imageservice

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/gantry-cri/gantry/imageservice/internal/overlay"
)

// volumesDir is in containers/<id>. Each volume <name>, the image's id without
// its algorithm, is <name>/layers, as that of the container, and <name>/root,
// an empty directory with the mode and owner of the image's root. It lies
// uppermost, for the uppermost layer need not say what the root is like.
const volumesDir = "volumes"

// MountVolume makes an image volume for a container that has been mounted, and
// returns the path of its root: read-only, gone with Unmount. The image is kept
// on disk as long. A second call for the same image returns the same path.
func (s *Service) MountVolume(_ context.Context, containerID, imageID string) (root string, err error) {
	s.mu.RLock()
	c := s.containers[containerID]
	s.mu.RUnlock()
	if c == nil {
		return "", fmt.Errorf("container %q has no root file system: %w", abbreviate(containerID), errdefs.ErrFailedPrecondition)
	}
	c.op.Lock()
	defer c.op.Unlock()

	s.mu.Lock()
	if !c.mounted {
		s.mu.Unlock()
		return "", fmt.Errorf("container %s has no root file system: %w", containerID, errdefs.ErrFailedPrecondition)
	}
	img, err := s.find(imageID)
	if err != nil {
		s.mu.Unlock()
		return "", err
	}
	name := strings.TrimPrefix(img.ID, "sha256:")
	target := s.mountPath(containerID, name)
	if c.volumes[name] {
		s.mu.Unlock()
		return target, nil
	}
	for _, l := range img.layers {
		l.refs++
	}
	c.layers = slices.Concat(c.layers, img.layers)
	s.mu.Unlock()

	dir := s.path(containersDir, containerID, volumesDir, name)
	if err := s.mountVolume(containerID, dir, target, img, c.idmap, c.label); err != nil {
		err = fmt.Errorf("volume of image %s: %w", img.ID, err)
		if uerr := errors.Join(drop(target), s.discard(dir)); uerr != nil {
			return "", errors.Join(err, uerr) // the layers are held until Unmount
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		c.layers = c.layers[:len(c.layers)-len(img.layers)]
		s.releaseLocked(img.layers)
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.volumes == nil {
		c.volumes = make(map[string]bool)
	}
	c.volumes[name] = true
	return target, nil
}

func (s *Service) mountVolume(id, dir, target string, img *image, m *IDMap, label string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := writeLayers(dir, img); err != nil {
		return err
	}
	root := filepath.Join(dir, "root")
	if err := makeRoot(root, img.root); err != nil {
		return err
	}
	l := overlay.Layers{Lower: append([]string{root}, s.dirs(lower(img.layers))...), Label: label}
	err := s.stack(id, l, target, m)
	if errors.Is(err, overlay.ErrNoIDMap) {
		return fmt.Errorf("in a user namespace it takes Linux 5.19 and a file system that can be idmapped: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	return err
}
