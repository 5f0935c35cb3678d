package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Open returns a reader of a blob. The transfer starts with the first Read,
// goes on where it broke off, and falls over to the next host. The bytes are
// no more than the blob has, but not verified: see Doubt.
func (r *Repository) Open(ctx context.Context, desc ocispec.Descriptor) io.ReadCloser {
	s, err := r.stream(ctx, desc)
	if err != nil {
		return failed{err}
	}
	if r.ranges > 1 && desc.Size >= minRanged {
		return newRanged(s, r.ranges)
	}
	return s
}

// failed is a blob that cannot be read.
type failed struct{ err error }

func (f failed) Read([]byte) (int, error) { return 0, f.err }
func (f failed) Close() error             { return nil }

const (
	// enough bytes between two failures make the earlier one forgotten.
	enough      = 64 << 10
	maxFails    = 6
	maxRestarts = 8 // from the first byte, at hosts without ranges
)

// stream is a part of a blob, mostly the whole.
type stream struct {
	repo     *Repository
	ctx      context.Context // ends with Close
	cancel   context.CancelFunc
	desc     ocispec.Descriptor
	route    *route
	off, end int64 // what is still to come
	ranged   bool  // ranges it must be, but for the first byte of the blob

	host     *host // of body
	body     io.ReadCloser
	unsized  bool  // body may have more than it should
	broke    error // to be dealt with at the next Read
	fails    int   // without enough bytes between
	fresh    int64 // bytes since the last of them
	restarts int
}

func (r *Repository) stream(ctx context.Context, desc ocispec.Descriptor) (*stream, error) {
	if err := checkDigest(desc.Digest); err != nil {
		return nil, err
	}
	if desc.Size < 0 {
		return nil, fmt.Errorf("blob %s has size %d: %w", desc.Digest, desc.Size, errdefs.ErrInvalidArgument)
	}
	way, err := r.route(desc.Digest)
	if err != nil {
		return nil, err
	}
	return newStream(ctx, r, desc, way, 0, desc.Size), nil
}

func newStream(ctx context.Context, r *Repository, desc ocispec.Descriptor, way *route, off, end int64) *stream {
	ctx, cancel := context.WithCancel(ctx)
	return &stream{repo: r, ctx: ctx, cancel: cancel, desc: desc, route: way, off: off, end: end}
}

func (s *stream) Read(p []byte) (int, error) {
	for {
		if s.broke == nil {
			n, err := s.try(p)
			s.off += int64(n)
			s.fresh += int64(n)
			if err != io.EOF {
				s.broke = err
			}
			if n > 0 || err == nil || err == io.EOF {
				if n > 0 && err == io.EOF {
					err = nil // it is found again
				}
				return n, onlyEOF(err)
			}
		}
		err := s.broke
		s.broke = nil
		if s.ctx.Err() != nil {
			return 0, context.Cause(s.ctx)
		}
		if err := s.next(err); err != nil {
			return 0, err
		}
	}
}

func onlyEOF(err error) error {
	if err == io.EOF {
		return err
	}
	return nil
}

// interrupted is an error of a transfer that was under way.
type interrupted struct{ error }

func (e interrupted) Unwrap() error { return e.error }

// try reads from the current transfer, or starts one where the last ended.
func (s *stream) try(p []byte) (int, error) {
	if s.off == s.end {
		return 0, s.finish()
	}
	if s.body == nil {
		if err := s.open(); err != nil {
			return 0, err
		}
	}
	n, err := s.body.Read(p[:min(int64(len(p)), s.end-s.off)])
	if n > 0 && s.fresh == 0 {
		s.route.gave(s.host)
	}
	if err == nil || s.off+int64(n) == s.end {
		return n, nil
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	s.closeBody()
	return n, interrupted{broken(s.host.name, fmt.Errorf("blob %s broke off after %d of %d bytes: %w", s.desc.Digest, s.off+int64(n), s.desc.Size, err))}
}

// finish ends the transfer when all is here.
func (s *stream) finish() error {
	if s.body != nil && s.unsized {
		var more [1]byte
		if n, _ := s.body.Read(more[:]); n > 0 {
			s.closeBody()
			return broken(s.host.name, fmt.Errorf("blob %s is larger than its %d bytes: %w", s.desc.Digest, s.desc.Size, errdefs.ErrDataLoss))
		}
	}
	s.closeBody()
	return io.EOF
}

func (s *stream) closeBody() {
	if s.body != nil {
		s.body.Close()
		s.body = nil
	}
}

// next decides after a failure: again at this host, at the next, or the end.
func (s *stream) next(err error) error {
	if s.fresh >= enough {
		s.fails = 0
	}
	s.fresh = 0
	var under interrupted
	if errors.As(err, &under) && transient(under.error) {
		if s.fails++; s.fails <= maxFails {
			if s.fails == 1 {
				return nil
			}
			return sleep(s.ctx, jitter(min(s.repo.backoff<<(s.fails-2), maxWait)))
		}
	}
	if errors.Is(err, errNoRanges) || s.host == nil || !s.route.leave(s.host) {
		return err
	}
	s.repo.leave(s.ctx, s.host, err)
	s.fails, s.restarts = 0, 0
	return nil
}

func (s *stream) hostName() string {
	if s.host == nil {
		return s.repo.domain
	}
	return s.host.name
}

// open asks the current host for what is still to come.
func (s *stream) open() error {
	var last bool
	s.host, last = s.route.current()
	q := query{method: http.MethodGet, what: "blobs/" + s.desc.Digest.String()}
	if s.off > 0 || s.ranged {
		q.ranges = fmt.Sprintf("bytes=%d-%d", s.off, s.end-1) // not every registry knows a range without an end
	}
	resp, err := s.repo.request(s.ctx, s.host, last, q)
	if err != nil {
		return err
	}
	s.body = resp.Body
	if err := s.check(resp); err != nil {
		s.closeBody()
		return err
	}
	return nil
}

// check tells whether the answer is what was asked for.
func (s *stream) check(resp *http.Response) error {
	s.unsized = resp.ContentLength < 0
	if resp.StatusCode == http.StatusPartialContent {
		text := resp.Header.Get("Content-Range")
		start, total, ok := parseRange(text)
		if !ok || start != s.off || (total >= 0 && total != s.desc.Size) {
			return broken(s.host.name, fmt.Errorf("answer has range %q, not one from %d of %d bytes: %w",
				printable(text, 64), s.off, s.desc.Size, errdefs.ErrDataLoss))
		}
		return nil
	}
	if resp.ContentLength >= 0 && resp.ContentLength != s.desc.Size {
		return broken(s.host.name, fmt.Errorf("blob %s has %d bytes, not %d: %w", s.desc.Digest, resp.ContentLength, s.desc.Size, errdefs.ErrDataLoss))
	}
	if s.off == 0 { // the whole instead of the first part
		s.end = s.desc.Size
		return nil
	}
	if s.ranged {
		return broken(s.host.name, errNoRanges)
	}
	// It knows no ranges: what is already here comes again.
	if s.restarts++; s.restarts > maxRestarts {
		return broken(s.host.name, fmt.Errorf("blob %s broke off %d times at a host without ranges: %w", s.desc.Digest, s.restarts, errdefs.ErrUnavailable))
	}
	if _, err := io.CopyN(io.Discard, s.body, s.off); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return interrupted{broken(s.host.name, err)}
	}
	return nil
}

// parseRange reads `bytes 5-9/10`; total is -1 for `*`.
func parseRange(s string) (start, total int64, ok bool) {
	s, ok = strings.CutPrefix(s, "bytes ")
	if !ok {
		return 0, 0, false
	}
	span, size, _ := strings.Cut(s, "/")
	first, last, ok := strings.Cut(span, "-")
	if !ok {
		return 0, 0, false
	}
	start, err1 := strconv.ParseInt(first, 10, 64)
	end, err2 := strconv.ParseInt(last, 10, 64)
	if err1 != nil || err2 != nil || start < 0 || end < start {
		return 0, 0, false
	}
	if size == "*" {
		return start, -1, true
	}
	total, err := strconv.ParseInt(size, 10, 64)
	return start, total, err == nil && end < total
}

// Close ends the transfer.
func (s *stream) Close() error {
	s.cancel()
	s.closeBody()
	return nil
}
