package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/supervisor"
	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/oci"
)

const (
	// checkpointTimeout bounds a checkpoint whose caller has set no bound.
	checkpointTimeout = 10 * time.Minute
	// checkpointGrace is how long CRIU may go on after the call's end. Killed
	// while its code runs in the container's processes it may break them, so
	// first it has time to fail: it does, once the caller has removed the folder.
	checkpointGrace = 30 * time.Second
)

// checkpoint has the OCI runtime, which has CRIU, dump a container that runs on.
func (s *Server) checkpoint(ctx context.Context, req supervisor.CheckpointRequest) error {
	if !filepath.IsAbs(req.Images) || !filepath.IsAbs(req.Work) {
		return fmt.Errorf("folders %q and %q of a checkpoint must be absolute paths: %w", req.Images, req.Work, errdefs.ErrInvalidArgument)
	}
	c, err := s.lookup(req.ID)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, checkpointTimeout)
	defer cancel()
	if err := c.lockRunning(ctx); err != nil {
		return err
	}
	defer c.unlock()
	conf := filepath.Join(c.dir, "criu.conf") // a later checkpoint, or the deletion, takes away what a crash leaves
	defer os.Remove(conf)
	external, err := c.externalFiles()
	if err == nil {
		err = os.WriteFile(conf, external, 0o600)
	}
	if err != nil {
		return fmt.Errorf("checkpointing container %s: %w", c.id, err)
	}
	cmd := c.command("checkpoint", "--leave-running", "--file-locks", "--tcp-established", "--ext-unix-sk",
		"--image-path", req.Images, "--work-path", req.Work, c.id)
	cmd.Env = []string{"CRIU_CONFIG_FILE=" + conf} // criu(8); both runc and crun start it with their environment
	cmd.Grace = checkpointGrace
	if err := s.runner.Run(ctx, cmd); err != nil {
		var refused *oci.Error
		if errors.As(err, &refused) {
			return fmt.Errorf("checkpointing container %s: %w: %w", c.id, err, errdefs.ErrFailedPrecondition)
		}
		thaw(c.rec.Request.CgroupProcs) // CRIU was killed, perhaps after it had frozen the container
		return fmt.Errorf("checkpointing container %s: %w", c.id, err)
	}
	return nil
}

// externalFiles is CRIU's configuration: the FIFOs of the container's standard
// streams lie outside its mounts, where CRIU takes no file that it is not told
// of (criu(8), --external file[mnt_id:inode], both in hexadecimal).
func (c *container) externalFiles() ([]byte, error) {
	var b strings.Builder
	for _, name := range []string{"stdin", "stdout", "stderr"} {
		var st unix.Statx_t
		err := unix.Statx(unix.AT_FDCWD, filepath.Join(c.dir, name), unix.AT_SYMLINK_NOFOLLOW, unix.STATX_INO|unix.STATX_MNT_ID, &st)
		if errors.Is(err, unix.ENOENT) {
			continue // it has a terminal, or no stdin
		}
		if err != nil {
			return nil, fmt.Errorf("its %s: %w", name, err)
		}
		fmt.Fprintf(&b, "external file[%x:%x]\n", st.Mnt_id, st.Ino)
	}
	return []byte(b.String()), nil
}
