package server

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/gantry-cri/gantry/sandbox/supervisor"
)

const (
	// updateTimeout bounds the OCI runtime's update, which waits for systemd.
	updateTimeout = 30 * time.Second
	// updateGrace is how long it may go on after the call's end: killed in the
	// middle it leaves limits of which some are new.
	updateGrace = 5 * time.Second
)

// update has the OCI runtime change a running container's limits.
func (s *Server) update(ctx context.Context, req supervisor.UpdateRequest) error {
	c, err := s.lookup(req.ID)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, updateTimeout)
	defer cancel()
	if err := c.lockRunning(ctx); err != nil {
		return err
	}
	defer c.unlock()
	file := filepath.Join(c.dir, "update.json") // a later update, or the deletion, takes away what a crash leaves
	defer os.Remove(file)
	if err := os.WriteFile(file, req.Resources, 0o600); err != nil {
		return fmt.Errorf("updating container %s: %w", c.id, err)
	}
	cmd := c.command("update", "--resources", file, c.id)
	cmd.Grace = updateGrace
	if err := s.runner.Run(ctx, cmd); err != nil {
		return fmt.Errorf("updating container %s: %w", c.id, err)
	}
	return nil
}
