package imageservice

import (
	"context"
	"fmt"
	"io"

	"github.com/containerd/errdefs"

	"github.com/gantry-cri/gantry/imageservice/internal/archive"
)

// WriteChanges writes, as a tar, what a container has made and changed in its
// root file system, and returns the absolute paths of what it has deleted of
// its image. It may go on writing meanwhile; see [archive.Changes].
func (s *Service) WriteChanges(ctx context.Context, w io.Writer, containerID string) (deleted []string, err error) {
	s.mu.RLock()
	c := s.containers[containerID]
	mounted := c != nil && c.mounted
	s.mu.RUnlock()
	if !mounted {
		return nil, fmt.Errorf("container %s has no root file system: %w", abbreviate(containerID), errdefs.ErrNotFound)
	}
	upper, err := openDir(s.path(containersDir, containerID, "upper"))
	if err != nil {
		return nil, err
	}
	defer upper.Close()
	deleted, err = archive.Changes(ctx, w, upper)
	if err != nil {
		return nil, fmt.Errorf("what container %s has written: %w", containerID, err)
	}
	return deleted, nil
}
