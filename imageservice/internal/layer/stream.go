package layer

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/gantry-cri/gantry/imageservice/internal/guard"
)

// Source is the blob of a layer and what is known of it beforehand.
type Source struct {
	// Open starts the transfer. ctx ends when the pipeline does.
	Open   func(ctx context.Context) (io.ReadCloser, error)
	Digest digest.Digest // of the blob; sha256
	Size   int64         // of the blob
	DiffID digest.Digest // of the uncompressed tar; sha256
	// Keep gets a copy of the blob if not nil.
	Keep io.Writer
}

// Result says what a layer is, after all its digests were found right.
type Result struct {
	Bytes, Inodes uint64 // disk space
	// RootListed: the tar says mode and owner of the root directory, which
	// the directory now has.
	RootListed bool
	// RootOpaque: nothing of the layers below may show.
	RootOpaque bool

	u *unpacker // nil unless something depends on the layers below
}

// Dependent says whether Complete must be called with the layers below.
func (r *Result) Dependent() bool { return r.u != nil }

// Memory is what a dependent layer takes until Complete, in bytes.
func (r *Result) Memory() int {
	if r.u == nil {
		return 0
	}
	return r.u.memory
}

const (
	// bufferSize times those under way in a few layers at once should fit into
	// the processors' caches: with 256 KiB ten layers took 0.92 s, with 64 KiB
	// 0.64 s (on two cores with 1 MiB each), with 32 KiB longer again.
	bufferSize = 64 << 10
	// buffersPerLink let one stage run ahead of the next by this much.
	buffersPerLink = 4
)

// Unpack writes the layer into the empty directory rootFD, which the caller
// keeps open and deletes when there is an error.
func Unpack(ctx context.Context, src Source, rootFD int, limits Limits) (*Result, error) {
	limits = limits.orDefault().forBlob(src.Size)
	group, ctx := errgroup.WithContext(ctx)
	blob, raw, files := newLink(ctx), newLink(ctx), newLink(ctx)
	files.free = raw.free // buffers go through the hash stage and come back

	blobHash, tarHash := sha256.New(), sha256.New()
	start := func(stage func() error) { group.Go(func() error { return guard.Run(ctx, stage) }) }
	start(func() error { return fetch(ctx, src, blobHash, blob) })
	start(func() error { return inflate(blob, raw, limits.Bytes) })
	start(func() error { return raw.hash(tarHash, files) })
	u := newUnpacker(ctx, rootFD, limits, buffers.Get().(*[bufferSize]byte)[:])
	start(func() error {
		r := &linkReader{link: files}
		if err := u.unpack(r); err != nil {
			return err
		}
		return r.drain() // the rest belongs to the diffID
	})
	err := group.Wait()
	buffers.Put((*[bufferSize]byte)(u.buf))
	u.buf = nil
	u.closeDirs() // after an error some are open
	blob.recycle()
	raw.recycle()
	if err != nil {
		return nil, err
	}
	if err := verify("blob", blobHash, src.Digest); err != nil {
		return nil, err
	}
	if err := verify("uncompressed layer", tarHash, src.DiffID); err != nil {
		return nil, err
	}
	res := &Result{Bytes: u.bytes, Inodes: u.inodes, RootListed: u.root.listed, RootOpaque: u.root.opaque}
	if u.dependent() {
		res.u = u
	}
	return res, nil
}

func verify(what string, h hash.Hash, want digest.Digest) error {
	if got := digest.NewDigest(digest.SHA256, h); got != want {
		return fmt.Errorf("%s is %s instead of %s: %w", what, got, want, errdefs.ErrDataLoss)
	}
	return nil
}

// fetch reads the blob, which has exactly its size.
func fetch(ctx context.Context, src Source, h hash.Hash, out *link) (err error) {
	defer func() { out.end(err) }()
	body, err := src.Open(ctx)
	if err != nil {
		return err
	}
	defer body.Close()
	var total int64
	for {
		buf, err := out.get()
		if err != nil {
			return err
		}
		n, err := readFull(body, buf)
		if total += int64(n); total > src.Size {
			return fmt.Errorf("blob %s is larger than its %d bytes: %w", src.Digest, src.Size, errdefs.ErrDataLoss)
		}
		if n > 0 {
			h.Write(buf[:n])
			if src.Keep != nil {
				if _, err := src.Keep.Write(buf[:n]); err != nil {
					return fmt.Errorf("keeping blob %s: %w", src.Digest, err)
				}
			}
			if err := out.put(buf[:n]); err != nil {
				return err
			}
		}
		switch {
		case err == io.EOF:
			if total < src.Size {
				return fmt.Errorf("blob %s ended after %d of %d bytes: %w", src.Digest, total, src.Size, io.ErrUnexpectedEOF)
			}
			return nil
		case err != nil:
			return err
		}
	}
}

// readFull is io.ReadFull, but an EOF is the reader's own: one in the middle
// of compressed data stays ErrUnexpectedEOF, the end of the data is EOF.
func readFull(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	return n, err
}

// inflate writes the tar that is in the blob.
func inflate(in, out *link, limit int64) (err error) {
	defer func() { out.end(err) }()
	src := &linkReader{link: in}
	r, done, err := decompressor(src)
	if err != nil {
		return src.blame("decompressing the layer", err, errdefs.ErrDataLoss)
	}
	defer done()
	var total int64
	for {
		buf, err := out.get()
		if err != nil {
			return err
		}
		n, err := readFull(r, buf)
		if total += int64(n); total > limit {
			return fmt.Errorf("layer is larger than %d bytes: %w", limit, errdefs.ErrInvalidArgument)
		}
		if n > 0 {
			if err := out.put(buf[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return src.drain()
		}
		if errors.Is(err, zstd.ErrWindowSizeExceeded) || errors.Is(err, zstd.ErrDecoderSizeExceeded) {
			return fmt.Errorf("layer needs a window of more than %d bytes: %w: %w", maxWindow, err, errdefs.ErrInvalidArgument)
		}
		if err != nil {
			return src.blame("decompressing the layer", err, errdefs.ErrDataLoss)
		}
	}
}

// decompressor looks at the first bytes.
func decompressor(src io.Reader) (io.Reader, func(), error) {
	br := bufio.NewReaderSize(src, 64<<10)
	magic, err := br.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	switch {
	case len(magic) >= 3 && magic[0] == 0x1f && magic[1] == 0x8b && magic[2] == 8:
		zr, err := gzip.NewReader(br)
		if err != nil {
			return nil, nil, err
		}
		return zr, func() { zr.Close() }, nil
	case len(magic) == 4 && isZstd(magic):
		return unzstd(br)
	}
	return br, func() {}, nil
}

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// link carries filled buffers from one stage to the next, and the empty ones
// back. After end, full is closed. When ctx ends all calls fail.
type link struct {
	ctx   context.Context
	full  chan []byte
	free  chan []byte
	spare int   // buffers that may still be taken from the pool; of the writer
	err   error // why full was closed; nil at the end of the data
}

func newLink(ctx context.Context) *link {
	return &link{
		ctx:   ctx,
		full:  make(chan []byte, buffersPerLink),
		free:  make(chan []byte, buffersPerLink+1),
		spare: buffersPerLink,
	}
}

// end closes the link; the reader gets err, or io.EOF, after the data.
func (l *link) end(err error) {
	l.err = err
	close(l.full)
}

// recycle gives the buffers back once no stage runs any more.
func (l *link) recycle() {
	for len(l.free) > 0 {
		buffers.Put((*[bufferSize]byte)((<-l.free)[:bufferSize]))
	}
}

func (l *link) get() ([]byte, error) {
	select {
	case b := <-l.free:
		return b[:bufferSize], nil
	default:
	}
	if l.spare > 0 {
		l.spare--
		return buffers.Get().(*[bufferSize]byte)[:], nil
	}
	select {
	case b := <-l.free:
		return b[:bufferSize], nil
	case <-l.ctx.Done():
		return nil, context.Cause(l.ctx)
	}
}

func (l *link) put(b []byte) error {
	select {
	case l.full <- b:
		return nil
	case <-l.ctx.Done():
		return context.Cause(l.ctx)
	}
}

// hash is the stage between this link and the next.
func (l *link) hash(h hash.Hash, out *link) (err error) {
	defer func() { out.end(err) }()
	for {
		b, err := l.take()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		h.Write(b)
		if err := out.put(b); err != nil {
			return err
		}
	}
}

// take returns the next filled buffer; io.EOF after the last.
func (l *link) take() ([]byte, error) {
	select {
	case b, ok := <-l.full:
		if ok {
			return b, nil
		}
		if l.err != nil {
			return nil, l.err
		}
		return nil, io.EOF
	case <-l.ctx.Done():
		return nil, context.Cause(l.ctx)
	}
}

// linkReader reads a link and hands its buffers back.
type linkReader struct {
	link  *link
	buf   []byte // what is left of
	whole []byte
	err   error // why there is no more
}

// blame tells whether a decoder failed because of what it read or because it
// could not read.
func (r *linkReader) blame(what string, err, kind error) error {
	if r.broken() {
		return r.err
	}
	return fmt.Errorf("%s: %w: %w", what, err, kind)
}

func (r *linkReader) broken() bool { return r.err != nil && r.err != io.EOF }

func (r *linkReader) Read(p []byte) (int, error) {
	if len(r.buf) == 0 {
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.buf)
	r.buf = r.buf[n:]
	return n, nil
}

func (r *linkReader) next() error {
	if r.err != nil {
		return r.err
	}
	if r.whole != nil {
		r.link.free <- r.whole // never full: it has room for all there are
		r.whole = nil
	}
	b, err := r.link.take()
	if err != nil {
		r.err = err
		return err
	}
	r.buf, r.whole = b, b
	return nil
}

func (r *linkReader) drain() error {
	for {
		if err := r.next(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}
