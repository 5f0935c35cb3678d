package archive

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantry-cri/gantry/imageservice/internal/manifest"
)

const (
	maxEntries = 1 << 16
	maxName    = 512
	// maxWindow is that of layers: what `zstd --long` makes.
	maxWindow  = 128 << 20
	bufferSize = 256 << 10
)

// Limits bound what an archive may cost.
type Limits struct {
	Bytes      int64 // of the archive without its outer compression
	IndexDepth int
	Manifest   manifest.Limits // its Size is of each JSON document
}

// Image is an image of an archive.
type Image struct {
	// Names as they stand in the archive.
	Names []string
	// Top is what a name leads to: the index or the manifest. Zero when the
	// archive has no manifests.
	Top      ocispec.Descriptor
	Digest   digest.Digest // of Body
	Body     []byte        // the manifest
	Manifest *manifest.Manifest
}

// Archive is an archive that was read. Its methods may be called concurrently.
type Archive struct {
	Images []Image

	limits  Limits
	file    *os.File
	users   atomic.Int64 // of file, which is closed when the last has gone
	size    int64
	entries map[string]*entry
	blobs   map[digest.Digest]*entry
	links   map[string]string // symbolic links between layers
}

// entry is a file of the archive, and where it lies in ours.
type entry struct {
	digest    digest.Digest
	off, size int64
	magic     [4]byte
}

// Read reads r to its end into file, which is empty, and finds the images. The
// caller closes the Archive, which takes file over; after an error it closes file.
func Read(ctx context.Context, r io.Reader, file *os.File, limits Limits) (*Archive, error) {
	a := &Archive{
		limits: limits, file: file, links: make(map[string]string),
		entries: make(map[string]*entry), blobs: make(map[digest.Digest]*entry),
	}
	a.users.Store(1)
	in := &input{ctx: ctx, r: r}
	plain, done, err := decompress(in)
	if err != nil {
		return nil, in.blame(err)
	}
	defer done()
	limited := &limitReader{r: plain, left: limits.Bytes, limit: limits.Bytes}
	if err := a.spool(tar.NewReader(limited)); err != nil {
		return nil, in.blame(err)
	}
	// Checksums of the outer compression, and a sender that waits.
	if _, err := io.Copy(io.Discard, limited); err != nil {
		return nil, in.blame(damaged(err))
	}
	if err := a.findImages(); err != nil {
		return nil, err
	}
	return a, nil
}

// Use makes the caller a user too, who must call Close; false when there is
// none any more and all is gone.
func (a *Archive) Use() bool {
	for {
		n := a.users.Load()
		if n == 0 {
			return false
		}
		if a.users.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// Close takes one user off. With the last one the space is given back.
func (a *Archive) Close() error {
	if a.users.Add(-1) > 0 {
		return nil
	}
	return a.file.Close()
}

// errClosed is of what is asked of an archive that nobody uses any more.
var errClosed = fmt.Errorf("the archive is closed: %w", errdefs.ErrUnavailable)

// Blob returns a document.
func (a *Archive) Blob(_ context.Context, desc ocispec.Descriptor) ([]byte, error) {
	e, err := a.blob(desc)
	if err != nil {
		return nil, err
	}
	if !a.Use() {
		return nil, fmt.Errorf("document %s: %w", desc.Digest, errClosed)
	}
	defer a.Close()
	return a.document(desc.Digest.String(), e)
}

// Open returns a reader of a blob. It keeps the archive in use.
func (a *Archive) Open(_ context.Context, desc ocispec.Descriptor) io.ReadCloser {
	e, err := a.blob(desc)
	if err == nil && !a.Use() {
		err = fmt.Errorf("blob %s: %w", desc.Digest, errClosed)
	}
	if err != nil {
		return io.NopCloser(&failed{err})
	}
	return blob{io.NewSectionReader(a.file, e.off, e.size), a}
}

// Doubt says that a blob was read wrong. An archive has it from nowhere else.
func (a *Archive) Doubt(context.Context, io.ReadCloser, error) bool { return false }

type blob struct {
	*io.SectionReader
	archive *Archive
}

func (b blob) Close() error { return b.archive.Close() }

// blob finds what is named by digest and size.
func (a *Archive) blob(desc ocispec.Descriptor) (*entry, error) {
	e := a.blobs[desc.Digest]
	if e == nil {
		return nil, fmt.Errorf("blob %s is not in the archive: %w", desc.Digest, errdefs.ErrInvalidArgument)
	}
	if e.size != desc.Size {
		return nil, fmt.Errorf("blob %s has %d bytes in the archive instead of %d: %w", desc.Digest, e.size, desc.Size, errdefs.ErrDataLoss)
	}
	return e, nil
}

// document reads a small file whole.
func (a *Archive) document(name string, e *entry) ([]byte, error) {
	if e.size > a.limits.Manifest.Size {
		return nil, fmt.Errorf("%s has %d bytes, more than %d: %w", name, e.size, a.limits.Manifest.Size, errdefs.ErrInvalidArgument)
	}
	body := make([]byte, e.size)
	if _, err := a.file.ReadAt(body, e.off); err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	return body, nil
}

// spool copies the files of the tar one after another.
func (a *Archive) spool(tr *tar.Reader) error {
	buf := make([]byte, bufferSize)
	for n := 0; ; n++ {
		hdr, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return damaged(err)
		}
		if n == maxEntries {
			return fmt.Errorf("archive has more than %d entries: %w", maxEntries, errdefs.ErrInvalidArgument)
		}
		if err := a.entry(hdr, tr, buf); err != nil {
			return fmt.Errorf("archive entry %.256q: %w", hdr.Name, err)
		}
	}
}

func (a *Archive) entry(hdr *tar.Header, r io.Reader, buf []byte) error {
	if len(hdr.Name) > maxName {
		return fmt.Errorf("name of more than %d bytes: %w", maxName, errdefs.ErrInvalidArgument)
	}
	if hdr.Typeflag == tar.TypeDir {
		return nil
	}
	name := strings.TrimPrefix(hdr.Name, "./")
	if !fs.ValidPath(name) || name == "." {
		return fmt.Errorf("name is not a plain relative path: %w", errdefs.ErrInvalidArgument)
	}
	if a.entries[name] != nil || a.links[name] != "" {
		return fmt.Errorf("stands twice: %w", errdefs.ErrInvalidArgument)
	}
	switch hdr.Typeflag {
	case tar.TypeReg:
		return a.store(name, hdr.Size, r, buf)
	case tar.TypeSymlink:
		target := path.Join(path.Dir(name), hdr.Linkname)
		if len(hdr.Linkname) > maxName || path.IsAbs(hdr.Linkname) || !fs.ValidPath(target) ||
			path.Base(name) != layerTar || path.Ext(target) != ".tar" {
			return fmt.Errorf("symbolic link to %.256q: %w", hdr.Linkname, errdefs.ErrInvalidArgument)
		}
		a.links[name] = target
		return nil
	}
	return fmt.Errorf("neither file nor directory (type %q): %w", hdr.Typeflag, errdefs.ErrInvalidArgument)
}

// store appends one file to ours.
func (a *Archive) store(name string, size int64, r io.Reader, buf []byte) error {
	if isDocument(name) && size > a.limits.Manifest.Size {
		return fmt.Errorf("%d bytes, more than %d: %w", size, a.limits.Manifest.Size, errdefs.ErrInvalidArgument)
	}
	e := &entry{off: a.size, size: size}
	h := sha256.New()
	for left := size; left > 0; {
		n, err := io.ReadFull(r, buf[:min(left, int64(len(buf)))])
		if err != nil {
			return damaged(unexpected(err))
		}
		if left == size {
			copy(e.magic[:], buf[:n])
		}
		h.Write(buf[:n])
		if _, err := a.file.Write(buf[:n]); err != nil {
			return fmt.Errorf("keeping the archive: %w", err)
		}
		left -= int64(n)
	}
	a.size += size
	e.digest = digest.NewDigest(digest.SHA256, h)
	if dir, hex := path.Split(name); dir == blobsDir && hex != e.digest.Encoded() {
		return fmt.Errorf("content has digest %s: %w", e.digest, errdefs.ErrDataLoss)
	}
	a.entries[name], a.blobs[e.digest] = e, e
	return nil
}

// decompress looks at the first bytes.
func decompress(r io.Reader) (io.Reader, func(), error) {
	br := bufio.NewReaderSize(r, bufferSize)
	magic, err := br.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, damaged(err)
	}
	switch {
	case isGzip(magic):
		zr, err := gzip.NewReader(br)
		if err != nil {
			return nil, nil, damaged(err)
		}
		return zr, func() { _ = zr.Close() }, nil
	case isZstd(magic):
		zr, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, nil, damaged(err)
		}
		return zr, zr.Close, nil
	}
	return br, func() {}, nil
}

func isGzip(b []byte) bool { return len(b) >= 3 && b[0] == 0x1f && b[1] == 0x8b && b[2] == 8 }

func isZstd(b []byte) bool {
	return len(b) >= 4 && b[0] == 0x28 && b[1] == 0xb5 && b[2] == 0x2f && b[3] == 0xfd
}

// input ends with the context, and remembers whether it failed itself.
type input struct {
	ctx context.Context
	r   io.Reader
	err error
}

func (in *input) Read(p []byte) (n int, err error) {
	if err = context.Cause(in.ctx); err == nil {
		n, err = in.r.Read(p)
	}
	if err != nil && err != io.EOF {
		in.err = err
	}
	return n, err
}

// blame says why an archive was not read: when it did not come, it makes no
// sense either.
func (in *input) blame(err error) error {
	if in.err != nil {
		return fmt.Errorf("reading the archive: %w", in.err)
	}
	return err
}

// damaged is an error of what was read, unless it has a kind.
func damaged(err error) error {
	if errdefs.IsResourceExhausted(err) {
		return fmt.Errorf("reading the archive: %w", err)
	}
	return fmt.Errorf("reading the archive: %w: %w", err, errdefs.ErrDataLoss)
}

// limitReader fails when there is more than its limit.
type limitReader struct {
	r           io.Reader
	left, limit int64
}

func (l *limitReader) Read(p []byte) (int, error) {
	n, err := l.r.Read(p[:min(int64(len(p)), l.left+1)])
	if l.left -= int64(n); l.left < 0 {
		return 0, fmt.Errorf("archive has more than the %d bytes that may be taken for it: %w", l.limit, errdefs.ErrResourceExhausted)
	}
	return n, err
}

type failed struct{ err error }

func (f *failed) Read([]byte) (int, error) { return 0, f.err }

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
