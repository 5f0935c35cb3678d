package sandbox

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/gantry-cri/gantry/sandbox/supervisor"
)

// Attach joins a client to the standard streams of a running container: it
// gets what the container writes from now on, and what it sends is the
// container's input, with that of other clients. It returns nil when the
// container has ended and the client has all that it wrote, and when the
// client ends its stdin; this ends stdin for the container instead where the
// container was started with StdinOnce and has no terminal. A client that does
// not read in time is cut off; neither the container nor its log waits for it.
// The errors are [supervisor.Client.Attach]'s. As with [Host.ExecStream] a Read
// or Write of s may still be under way when Attach returns.
func (h *Host) Attach(ctx context.Context, id string, s Streams) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	sizes := startResizer(s.Resize, TerminalSize{})
	defer sizes.stop()
	stdinEnd := make(chan struct{})
	req := supervisor.AttachRequest{ID: id, Stdin: s.Stdin != nil, StdinEnd: stdinEnd}
	req.Attached = func(input *os.File, stdin bool) {
		if input != nil {
			sizes.terminal <- input
		}
		if stdin {
			go feed(input, s.Stdin, cancel, func() {
				_ = input.Close() // first, as it keeps the container's stdin open
				close(stdinEnd)
			})
		}
	}
	var outputs []*output
	for _, o := range []struct {
		to     io.Writer
		theirs **os.File
	}{{s.Stdout, &req.Stdout}, {s.Stderr, &req.Stderr}} {
		if o.to == nil {
			continue
		}
		ours, theirs, err := os.Pipe()
		if err != nil {
			_ = req.Stdout.Close() // nil, or the first pipe's
			return fmt.Errorf("attach to container %s: %w", id, err)
		}
		defer ours.Close()
		*o.theirs = theirs
		outputs = append(outputs, startOutput(ours, o.to, cancel))
	}
	if err := h.sup.Attach(ctx, req); err != nil {
		return err
	}
	if err := drain(ctx, outputs); err != nil {
		return fmt.Errorf("attach to container %s: %w", id, err)
	}
	return nil
}
