package registry

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	lastAttempts = 5 // at the last host
	attempts     = 2 // where another host is left
	maxWait      = 10 * time.Second
)

// retry decides how often and when a request is tried again.
type retry struct {
	left  int           // attempts
	wait  time.Duration // before the next one, on average
	total time.Duration // that may still be waited
}

func (r *Repository) retry(last bool) *retry {
	if last {
		return &retry{lastAttempts - 1, r.backoff, r.timeout}
	}
	return &retry{attempts - 1, r.backoff, min(r.timeout, time.Second/2)}
}

// next waits for the next attempt after err, or says why there is none.
func (t *retry) next(ctx context.Context, err error) error {
	if t.left--; t.left < 0 || !transient(err) {
		return err
	}
	wait := jitter(t.wait)
	t.wait = min(2*t.wait, maxWait)
	var status *statusError
	if errors.As(err, &status) && status.after > t.total {
		return fmt.Errorf("%w; it asks to wait for %s, longer than %s", err, status.after, t.total)
	}
	if status != nil && status.after > 0 {
		wait = status.after + wait/4 // not all at the same moment
	}
	if wait = min(wait, t.total); wait <= 0 {
		return err
	}
	t.total -= wait
	return sleep(ctx, wait)
}

// jitter keeps those who failed together from coming back together.
func jitter(d time.Duration) time.Duration {
	return time.Duration((0.5 + rand.Float64()) * float64(d))
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// retryAfter reads the header's two forms. -1 when there is nothing to read.
func retryAfter(s string, now time.Time) time.Duration {
	s = strings.TrimSpace(s)
	if s == "" {
		return -1
	}
	if at, err := http.ParseTime(s); err == nil {
		return max(0, at.Sub(now))
	}
	const most = 1 << 30 // seconds, 34 years
	if strings.Trim(s, "0123456789") != "" {
		return -1
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n > most {
		n = most
	}
	return time.Duration(n) * time.Second
}
