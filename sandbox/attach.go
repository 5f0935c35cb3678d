package sandbox

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
)

// Attach connects the client's streams with a container's first process.
func (h *Host) Attach(_ context.Context, id string, _ Streams) error {
	return fmt.Errorf("attach to container %s: %w", id, errdefs.ErrNotImplemented)
}
