package registry

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Open returns a reader of a blob. The transfer starts with the first Read,
// goes on where it broke off, and falls over to the next host. The bytes are
// not verified.
func (r *Repository) Open(ctx context.Context, desc ocispec.Descriptor) io.ReadCloser {
	ctx, cancel := context.WithCancelCause(ctx)
	b := &blob{repo: r, ctx: ctx, cancel: cancel, desc: desc}
	b.timer = time.AfterFunc(time.Hour, func() {
		cancel(fmt.Errorf("no byte of %s from %s for %s: %w", desc.Digest, r.domain, r.timeout, errdefs.ErrUnavailable))
	})
	b.timer.Stop()
	for i := range r.hosts {
		if r.hosts[i].Capabilities.Has(docker.HostCapabilityPull) {
			b.hosts = append(b.hosts, &r.hosts[i])
		}
	}
	return b
}

type blob struct {
	repo   *Repository
	ctx    context.Context // of the transfer; ends with Close
	cancel context.CancelCauseFunc
	timer  *time.Timer // runs while the network is waited for
	desc   ocispec.Descriptor
	hosts  []*docker.RegistryHost // the current one first
	body   io.ReadCloser
	off    int64
	fails  int // since the last byte
}

func (b *blob) Read(p []byte) (int, error) {
	for {
		b.timer.Reset(b.repo.timeout)
		n, err := b.try(p)
		b.timer.Stop()
		if n > 0 {
			b.off += int64(n)
			b.fails = 0
		}
		if n > 0 || err == nil || err == io.EOF {
			return n, err
		}
		if b.ctx.Err() != nil {
			return 0, context.Cause(b.ctx)
		}
		if err := b.next(err); err != nil {
			return 0, err
		}
	}
}

// try reads from the current transfer, or starts one where the last ended.
func (b *blob) try(p []byte) (int, error) {
	if b.body == nil {
		if b.off == b.desc.Size {
			return 0, io.EOF // it broke off right at the end
		}
		if len(b.hosts) == 0 {
			return 0, fmt.Errorf("no host is configured for registry %s: %w", b.repo.domain, errdefs.ErrFailedPrecondition)
		}
		if err := b.open(b.hosts[0]); err != nil {
			return 0, err
		}
	}
	n, err := b.body.Read(p)
	if err == nil || (err == io.EOF && b.off+int64(n) >= b.desc.Size) {
		return n, err
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	b.body.Close()
	b.body = nil
	return n, broken(b.hosts[0], fmt.Errorf("blob %s broke off after %d of %d bytes: %w", b.desc.Digest, b.off+int64(n), b.desc.Size, err))
}

// next decides after a failure: again at this host, at the next, or the end.
func (b *blob) next(err error) error {
	b.fails++
	again := errdefs.IsUnavailable(err) && b.off > 0 && b.fails <= maxAttempts
	if !again {
		if len(b.hosts) <= 1 {
			return err
		}
		b.hosts = b.hosts[1:]
		b.fails = 0
		return nil
	}
	return sleep(b.ctx, time.Duration(b.fails*b.fails)*50*time.Millisecond)
}

func (b *blob) open(host *docker.RegistryHost) error {
	resp, err := b.repo.request(b.ctx, host, http.MethodGet, "blobs/"+b.desc.Digest.String(), nil, b.off)
	if err != nil {
		return err
	}
	if err := b.check(resp); err != nil {
		resp.Body.Close()
		return broken(host, err)
	}
	b.body = resp.Body
	return nil
}

// check tells whether the answer is the rest of the blob.
func (b *blob) check(resp *http.Response) error {
	if resp.StatusCode == http.StatusPartialContent {
		start, total, ok := parseRange(resp.Header.Get("Content-Range"))
		if !ok || start != b.off || (total >= 0 && total != b.desc.Size) {
			return fmt.Errorf("answer has range %.64q, not one from %d of %d bytes: %w", resp.Header.Get("Content-Range"), b.off, b.desc.Size, errdefs.ErrDataLoss)
		}
		return nil
	}
	if resp.ContentLength >= 0 && resp.ContentLength != b.desc.Size {
		return fmt.Errorf("blob %s has %d bytes, not %d: %w", b.desc.Digest, resp.ContentLength, b.desc.Size, errdefs.ErrDataLoss)
	}
	// It knows no ranges: what is already here comes again.
	_, err := io.CopyN(io.Discard, resp.Body, b.off)
	return err
}

// parseRange reads `bytes 5-9/10`; total is -1 for `*`.
func parseRange(s string) (start, total int64, ok bool) {
	s, ok = strings.CutPrefix(s, "bytes ")
	if !ok {
		return 0, 0, false
	}
	span, size, ok := strings.Cut(s, "/")
	if !ok {
		return 0, 0, false
	}
	first, _, ok := strings.Cut(span, "-")
	if !ok {
		return 0, 0, false
	}
	start, err := strconv.ParseInt(first, 10, 64)
	if err != nil {
		return 0, 0, false
	}
	if size == "*" {
		return start, -1, true
	}
	total, err = strconv.ParseInt(size, 10, 64)
	return start, total, err == nil
}

// Close ends the transfer.
func (b *blob) Close() error {
	b.timer.Stop()
	b.cancel(context.Canceled)
	if b.body != nil {
		b.body.Close()
		b.body = nil
	}
	return nil
}
