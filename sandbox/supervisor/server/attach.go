package server

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"

	"github.com/gantry-cri/gantry/sandbox/supervisor"
	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/logcopy"
	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/wire"
)

// attach lets a client have what the container writes, and write to it, until
// the container ends, the client hangs up or is too slow. It answers first with
// the descriptor for stdin, so that what the client writes does not pass
// through this process.
func (s *Server) attach(ctx context.Context, req supervisor.AttachCall, call *call) (any, error) {
	c, err := s.lookup(req.ID)
	if err != nil {
		return nil, err
	}
	a := &attachment{c: c}
	defer a.close()
	s.countAttached(1)
	defer s.countAttached(-1)
	if err := a.open(&req, call.files); err != nil {
		return nil, fmt.Errorf("attach to container %s: %w", c.id, err)
	}
	for _, f := range call.files {
		_ = f.Close()
	}
	call.begun()
	answer := supervisor.AttachAnswer{Attached: true, Stdin: a.stdin}
	if a.input == nil {
		err = call.answer(answer)
	} else {
		err = call.answer(answer, a.input)
		_ = a.input.Close()
	}
	if err != nil {
		return nil, err
	}
	if err := a.wait(ctx, call); err != nil {
		return nil, fmt.Errorf("attach to container %s: %w", c.id, err)
	}
	return supervisor.AttachAnswer{}, nil
}

func (s *Server) countAttached(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.attached += n
}

// attachment is one client's session with a container.
type attachment struct {
	c       *container
	copiers []*logcopy.Copier // of the sinks
	sinks   []*logcopy.Sink
	input   *os.File // a duplicate of the container's; nil when the client gets none
	stdin   bool     // the client may write to it
}

// open begins the session.
func (a *attachment) open(req *supervisor.AttachCall, files []*os.File) error {
	c := a.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != running {
		return fmt.Errorf("it does not run: %w", errdefs.ErrFailedPrecondition)
	}
	terminal := c.rec.Request.Terminal
	if terminal && len(c.copiers) == 0 {
		return fmt.Errorf("the supervisor that had its terminal was killed, and it has not come back: %w", errdefs.ErrFailedPrecondition)
	}
	for i, has := range []bool{req.HasStdout, req.HasStderr} {
		if !has {
			continue
		}
		if len(files) == 0 {
			return fmt.Errorf("files are too few: %w", errdefs.ErrInvalidArgument)
		}
		if i < len(c.copiers) { // a terminal has no stderr
			sink, err := logcopy.NewSink(files[0], &c.srv.attachMemory)
			if err != nil {
				return err
			}
			a.copiers, a.sinks = append(a.copiers, c.copiers[i]), append(a.sinks, sink)
		}
		files = files[1:]
	}
	stdin := req.Stdin && c.rec.Request.Stdin && c.input != nil
	if c.input != nil && (stdin || terminal) {
		var err error
		if a.input, err = wire.Duplicate(c.input); err != nil {
			return err
		}
	}
	a.stdin = stdin // not before: its end is then the session's
	for i, sink := range a.sinks {
		a.copiers[i].Attach(sink)
	}
	return nil
}

// wait returns at the session's end, after all output of an ordinary one.
func (a *attachment) wait(ctx context.Context, call *call) error {
	over := make([]<-chan struct{}, 2) // nil, of those not there, is never ready
	for i, sink := range a.sinks {
		over[i] = sink.Over()
	}
	half, ended := call.committed, a.c.stdinEnded
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-over[0]: // that reader has gone, or lost; or the stream has ended, and the container lives
			over[0] = nil
			if err := a.lost(0); err != nil {
				return err
			}
		case <-over[1]:
			over[1] = nil
			if err := a.lost(1); err != nil {
				return err
			}
		case <-half:
			half = nil
			if !a.stdin || !a.c.endStdin() {
				return a.finish(ctx)
			}
		case <-ended:
			ended = nil
			if err := call.answer(supervisor.AttachAnswer{StdinEnded: true}); err != nil {
				return err
			}
		case <-a.c.done:
			return a.finish(ctx)
		}
	}
}

// lost is an error when the sink's reader was too slow.
func (a *attachment) lost(i int) error {
	if errors.Is(a.sinks[i].Err(), logcopy.ErrBehind) {
		return fmt.Errorf("%w, fell more than %d MiB behind; the container's log has all of it: %w",
			logcopy.ErrBehind, logcopy.SinkBehind>>20, errdefs.ErrResourceExhausted)
	}
	return nil
}

// finish gives the client what has been read for it.
func (a *attachment) finish(ctx context.Context) error {
	for i, sink := range a.sinks {
		a.copiers[i].Detach(sink)
		sink.End()
	}
	for i, sink := range a.sinks {
		select {
		case <-sink.Over():
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err := a.lost(i); err != nil {
			return err
		}
	}
	return nil
}

// close ends the session, in any state.
func (a *attachment) close() {
	for i, sink := range a.sinks {
		a.copiers[i].Detach(sink)
		sink.Close()
	}
	if a.input != nil {
		_ = a.input.Close()
	}
	if a.stdin {
		a.c.endStdin()
	}
}

// endStdin ends the container's stdin, if the end of one session with it is to
// do that. A terminal goes on, as one cannot end without a hangup, and as
// clients want to come back to it.
func (c *container) endStdin() bool {
	req := &c.rec.Request
	if !req.StdinOnce || req.Terminal {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.input == nil {
		return true
	}
	c.rec.StdinEnded = true
	if err := c.writeRecord(); err != nil {
		c.log.Error("Ended stdin may come back with the next supervisor", "err", err)
	}
	_ = c.input.Close()
	c.input = nil
	close(c.stdinEnded)
	c.srv.inputs.tell()
	return true
}

// closeInput closes our side of the container's input when it has ended.
func (c *container) closeInput() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.input != nil {
		_ = c.input.Close()
		c.input = nil
		c.srv.inputs.tell()
	}
}
