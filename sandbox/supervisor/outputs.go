package supervisor

import (
	"context"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// maxKept is how many descriptors are left to the rest of the daemon, where the limit is not small.
const maxKept = 512

// holdOutputs opens the FIFOs of a container's output, if it has any and has not
// ended, and reads nothing: so the kernel keeps what is in them when the
// container ends while no supervisor is there, for the next one. Near the limit
// of descriptors it does without. They are let go when the exit is told, which
// is after it is on disk, and at the deletion.
func (c *Client) holdOutputs(id string) {
	dir := filepath.Join(c.cfg.Dir, "containers", id)
	c.mu.Lock() // against who lets go of them meanwhile
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	if _, err := os.Lstat(filepath.Join(dir, "exit.json")); err == nil {
		return
	}
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		return
	}
	// Numbers and not files, which would be polled: each write of the container would wake this process.
	var fds []int
	for _, name := range []string{"stdout", "stderr"} {
		fd, err := unix.Open(filepath.Join(dir, name), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue // a terminal's container has none
		}
		fds = append(fds, fd)
		if uint64(fd) >= limit.Cur-min(maxKept, limit.Cur/4) { // the kernel gives the lowest that is free
			closeFDs(fds)
			fds = nil
			break
		}
	}
	closeFDs(c.outputs[id]) // of the same FIFOs, or of an earlier container
	delete(c.outputs, id)
	if len(fds) > 0 {
		c.outputs[id] = fds
	}
}

// holdAllOutputs does that for all containers that run.
func (c *Client) holdAllOutputs(ctx context.Context) error {
	states, err := c.List(ctx)
	if err != nil {
		return err
	}
	for _, s := range states {
		if s.Exit == nil {
			c.holdOutputs(s.ID)
		}
	}
	return nil
}

func (c *Client) letOutputsGo(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	closeFDs(c.outputs[id])
	delete(c.outputs, id)
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}
