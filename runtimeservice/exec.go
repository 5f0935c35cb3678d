package runtimeservice

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/runtimeservice/lifecycle"
	"github.com/gantry-cri/gantry/runtimeservice/ocispec"
	"github.com/gantry-cri/gantry/sandbox/cgroup"
)

// exec is the RPCs that run something in a container.
type exec struct{ *core }

// execResponseLimit is what stdout and stderr may have together, in bytes: the
// kubelet's client takes messages of 16 MiB, and a response that is over it by
// its own framing would fail every probe with much output.
const execResponseLimit = 16<<20 - 1024

// ExecSync runs a command in a container and returns its output and exit
// code. When the timeout has passed, all that the command has started is
// killed and the error is context.DeadlineExceeded, which is what the kubelet
// takes for a failed probe.
func (s *exec) ExecSync(ctx context.Context, req *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	c, err := s.running(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	process, err := s.process(c, req.GetCmd(), false)
	if err != nil {
		return nil, err
	}
	if t := req.GetTimeout(); t > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, seconds(t),
			fmt.Errorf("command %q timed out after %d s: %w", req.GetCmd(), t, context.DeadlineExceeded))
		defer cancel()
	}
	res, err := s.host.Exec(ctx, c.id, process, sandboxIDs(c.pod.userns))
	if ctx.Err() != nil {
		return nil, fmt.Errorf("container %s (%s): %w", c.key.name, c.id, context.Cause(ctx))
	}
	if err != nil {
		return nil, fmt.Errorf("container %s (%s): running %q: %w", c.key.name, c.id, req.GetCmd(), withPidsLimit(err, c.cgroup))
	}
	stdout, stderr := fitTogether(res.Stdout, res.Stderr, execResponseLimit)
	return &runtimeapi.ExecSyncResponse{Stdout: stdout, Stderr: stderr, ExitCode: int32(res.ExitCode)}, nil
}

// withPidsLimit adds to the error of a process that could not be started the limit that may be why: an OCI runtime knows
// no more than that it got no process or thread.
func withPidsLimit(err error, group string) error {
	if !errdefs.IsResourceExhausted(err) && !errors.Is(err, syscall.EAGAIN) {
		return err
	}
	if near := cgroup.NearPidsLimit(group); near != "" {
		return fmt.Errorf("%w: %s", err, near)
	}
	return err
}

// running returns a container by id if it runs.
func (s *core) running(id string) (*container, error) {
	c, err := s.index.container(id)
	if err != nil {
		return nil, err
	}
	if state := c.getState(); state != lifecycle.ContainerRunning {
		return nil, fmt.Errorf("container %s (%s) is %v, not running: %w", c.key.name, c.id, state, errdefs.ErrFailedPrecondition)
	}
	return c, nil
}

// process is the container's first process with another command, and with or without a terminal.
func (s *core) process(c *container, cmd []string, tty bool) (*specs.Process, error) {
	c.mu.Lock()
	own := c.process
	c.mu.Unlock()
	if own == nil {
		spec, err := s.host.ReadBundle(c.id)
		if err != nil {
			return nil, fmt.Errorf("container %s: %w", c.id, err)
		}
		own = spec.Process
		c.mu.Lock()
		c.process = own
		c.mu.Unlock()
	}
	return ocispec.BuildExec(&specs.Spec{Process: own}, cmd, tty), nil
}

// fitTogether cuts the ends off two outputs so that they have at most limit
// bytes together; the shorter one is cut only below the half of limit.
func fitTogether(a, b []byte, limit int) ([]byte, []byte) {
	if over := len(a) + len(b) - limit; over > 0 {
		long, short := &a, &b
		if len(a) < len(b) {
			long, short = &b, &a
		}
		*short = (*short)[:min(len(*short), limit/2)]
		*long = (*long)[:limit-len(*short)]
	}
	return a, b
}
