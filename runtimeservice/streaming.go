package runtimeservice

import (
	"context"
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox"
)

// streaming is the RPCs that answer with a URL, and what then happens there.
// What an RPC has checked is checked again when the client comes: it has time.
type streaming struct{ *core }

// Exec prepares a session with a command in a running container.
func (s *streaming) Exec(_ context.Context, req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	c, err := s.running(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	url, err := s.cfg.Streaming.Exec(req)
	if err != nil {
		return nil, fmt.Errorf("container %s (%s): exec: %w", c.key.name, c.id, err)
	}
	return &runtimeapi.ExecResponse{Url: url}, nil
}

// Attach prepares a session with the first process of a running container.
func (s *streaming) Attach(_ context.Context, req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	c, err := s.running(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	url, err := s.cfg.Streaming.Attach(req)
	if err != nil {
		return nil, fmt.Errorf("container %s (%s): attach: %w", c.key.name, c.id, err)
	}
	return &runtimeapi.AttachResponse{Url: url}, nil
}

// PortForward prepares connections to ports of a ready pod.
func (s *streaming) PortForward(_ context.Context, req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	p, err := s.index.pod(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if _, err := p.whileReady(); err != nil {
		return nil, err
	}
	url, err := s.cfg.Streaming.PortForward(req)
	if err != nil {
		return nil, fmt.Errorf("pod %s/%s (%s): port-forward: %w", p.key.namespace, p.key.name, p.id, err)
	}
	return &runtimeapi.PortForwardResponse{Url: url}, nil
}

// ExecSession runs the command of the request, connected with the client's
// streams, and returns its exit code. All that it has started ends with ctx and
// with the client ([sandbox.Host.ExecStream]). With the container's first process
// the rest of its cgroup is killed, also where that has no PID namespace of its
// own: then the code is 137.
func (s *streaming) ExecSession(
	ctx context.Context, req *runtimeapi.ExecRequest, streams sandbox.Streams,
) (exitCode int, err error) {
	c, err := s.running(req.GetContainerId())
	if err != nil {
		return 0, err
	}
	process, err := s.process(c, req.GetCmd(), req.GetTty())
	if err != nil {
		return 0, err
	}
	exitCode, err = s.host.ExecStream(ctx, c.id, process, sandboxIDs(c.pod.userns), streams)
	if err != nil {
		return 0, fmt.Errorf("container %s (%s): running %q: %w", c.key.name, c.id, req.GetCmd(), withPidsLimit(err, c.cgroup))
	}
	return exitCode, nil
}

// AttachSession connects the client's streams with the first process of a
// container until the client or the container ends. See [sandbox.Host.Attach].
func (s *streaming) AttachSession(ctx context.Context, req *runtimeapi.AttachRequest, streams sandbox.Streams) error {
	c, err := s.running(req.GetContainerId())
	if err != nil {
		return err
	}
	if err := s.host.Attach(ctx, c.id, streams); err != nil {
		return fmt.Errorf("container %s (%s): attach: %w", c.key.name, c.id, err)
	}
	return nil
}
