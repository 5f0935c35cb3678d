package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"
)

// minRate is the least number of bytes that a transfer brings in a second of
// waiting for it, on the average of one progress timeout. A transfer that
// crawls would hold one of the few slots for downloads for ever.
const minRate = 1 << 10

// errStill is in the error of a transfer that was given up for its pace.
var errStill = errors.New("no progress")

// pace watches one request and its answer. Only what is between begin and end
// counts.
type pace struct {
	limit  time.Duration
	timer  *time.Timer
	cancel context.CancelCauseFunc
	since  time.Time
	waited time.Duration // since the last look at got
	got    int64
}

func newPace(ctx context.Context, limit time.Duration) (context.Context, *pace) {
	ctx, cancel := context.WithCancelCause(ctx)
	p := &pace{limit: limit, cancel: cancel}
	p.timer = time.AfterFunc(limit, func() {
		cancel(fmt.Errorf("nothing comes for %s: %w: %w", limit, errStill, errdefs.ErrUnavailable))
	})
	p.timer.Stop()
	return ctx, p
}

func (p *pace) begin() {
	p.since = time.Now()
	p.timer.Reset(p.limit)
}

func (p *pace) end(n int) error {
	p.timer.Stop()
	p.waited += time.Since(p.since)
	p.got += int64(n)
	if p.waited < p.limit {
		return nil
	}
	slow := float64(p.got) < p.waited.Seconds()*minRate
	got := p.got
	p.waited, p.got = 0, 0
	if slow {
		return fmt.Errorf("%d bytes in %s, less than %d a second: %w: %w", got, p.limit, minRate, errStill, errdefs.ErrUnavailable)
	}
	return nil
}

// pacedBody is the body of an answer.
type pacedBody struct {
	io.ReadCloser
	ctx  context.Context // of the request; its cause is the reason that Read ends with
	pace *pace
}

func (b *pacedBody) Read(p []byte) (int, error) {
	b.pace.begin()
	n, err := b.ReadCloser.Read(p)
	slow := b.pace.end(n)
	switch {
	case err == nil:
		err = slow
	case err != io.EOF && b.ctx.Err() != nil:
		err = context.Cause(b.ctx)
	}
	return n, err
}

func (b *pacedBody) Close() error {
	err := b.ReadCloser.Close() // before the cancelling, which would close a connection that can be kept
	b.pace.cancel(nil)
	return err
}
