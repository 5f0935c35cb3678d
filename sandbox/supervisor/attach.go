package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/wire"
)

// Attach joins a client to a running container's standard streams. It returns
// nil when the container has ended, and all that it wrote is in the pipes, or
// when the end of stdin has ended the session. errdefs.ErrNotFound: unknown
// container; errdefs.ErrFailedPrecondition: it does not run, or its
// terminal has not come back to a new supervisor;
// errdefs.ErrResourceExhausted: the pipes were not read in time;
// errdefs.ErrUnavailable: the supervisor has ended, which the container does
// not by that; errdefs.ErrNotImplemented: the one that runs is an older one.
func (c *Client) Attach(ctx context.Context, req AttachRequest) error {
	call := AttachCall{AttachRequest: req, HasStdout: req.Stdout != nil, HasStderr: req.Stderr != nil}
	var files []*os.File
	for _, f := range []*os.File{req.Stdout, req.Stderr} {
		if f != nil {
			files = append(files, f)
		}
	}
	defer closeAll(files)

	attached := false
	var input *os.File
	var half sync.WaitGroup
	ended := make(chan struct{})
	defer func() {
		close(ended)
		half.Wait()
		closeAll([]*os.File{input})
	}()
	err := c.stream(ctx, "attach", call, files, func(conn wire.Conn, body json.RawMessage, got []*os.File) (more bool, err error) {
		var a AttachAnswer
		if err := json.Unmarshal(body, &a); err != nil || len(got) > 1 {
			closeAll(got)
			return false, errors.Join(fmt.Errorf("answer with %d descriptors", len(got)), err)
		}
		switch {
		case a.Attached:
			attached = true
			closeAll(files)
			if len(got) == 1 {
				input = got[0]
			}
			half.Go(func() {
				select {
				case <-req.StdinEnd:
					_ = conn.Send(struct{}{}) // an error: the session ends, and says why
				case <-ended:
				}
			})
			req.Attached(input, a.Stdin)
		case a.StdinEnded:
			closeAll([]*os.File{input})
		default:
			return false, nil
		}
		return true, nil
	})
	// One that is told to end cancels its calls, one that is killed breaks their connections.
	if attached && ctx.Err() == nil && (errors.Is(err, errdefs.ErrUnavailable) || errors.Is(err, context.Canceled)) {
		return fmt.Errorf("attach to container %s: session ended with the supervisor, the container goes on: %w: %v",
			req.ID, errdefs.ErrUnavailable, err)
	}
	return err
}
