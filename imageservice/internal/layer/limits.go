package layer

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Limits bound what one layer may cost. Zero fields mean the default.
type Limits struct {
	// Entries bounds the tar's headers, implied directories added.
	Entries int64
	// Bytes bounds the uncompressed tar, and the files' sizes added up.
	Bytes int64
	// Ratio bounds both once more, by this many times the blob's size. What
	// stays below 1 GiB is not looked at: a layer of zeros is no crime.
	Ratio int64

	memory int // of what is kept while the layer is unpacked; tests have less
}

const (
	defaultEntries = 4 << 20
	defaultBytes   = 256 << 30
	defaultRatio   = 200
	// ratioFrom is the size above which Limits.Ratio counts.
	ratioFrom     = 1 << 30
	defaultMemory = 256 << 20
	// nodeMemory is about what a node costs beside its strings, with its
	// place in a map and a map of its own.
	nodeMemory = 400
	// stepsPerEntry bounds the components and links that are gone through on
	// the way to an entry, on the average.
	stepsPerEntry = 64
	// maxName is PATH_MAX.
	maxName = 4096
	// maxXattrs is the kernel's XATTR_SIZE_MAX and XATTR_LIST_MAX; here it is
	// for all values and names of a file together.
	maxXattrs = 64 << 10
)

func (l Limits) orDefault() Limits {
	if l.Entries == 0 {
		l.Entries = defaultEntries
	}
	if l.Bytes == 0 {
		l.Bytes = defaultBytes
	}
	if l.Ratio == 0 {
		l.Ratio = defaultRatio
	}
	if l.memory == 0 {
		l.memory = defaultMemory
	}
	return l
}

// forBlob turns the ratio into bytes. The blob's size is checked as it is read.
func (l Limits) forBlob(size int64) Limits {
	if size < l.Bytes/l.Ratio {
		l.Bytes = min(l.Bytes, max(ratioFrom, size*l.Ratio))
	}
	return l
}

// bookEntry books a header or an implied directory. It also is where a layer of
// ever more of them notices that nobody wants it any more.
func (u *unpacker) bookEntry() error {
	if u.entries++; u.entries > u.limits.Entries {
		return fmt.Errorf("layer has more than %d entries: %w", u.limits.Entries, errdefs.ErrInvalidArgument)
	}
	return u.canceled()
}

// bookFile books the size of a file before it is written.
func (u *unpacker) bookFile(size int64) error {
	if size < 0 || size > u.limits.Bytes-u.logical {
		return fmt.Errorf("files of the layer are larger than %d bytes: %w", u.limits.Bytes, errdefs.ErrInvalidArgument)
	}
	u.logical += size
	return nil
}

// bookMemory books what is kept until the layer is finished.
func (u *unpacker) bookMemory(n int) error {
	if u.memory += n; u.memory > u.limits.memory {
		return fmt.Errorf("directories and links of the layer take more than %d bytes of memory: %w", u.limits.memory, errdefs.ErrInvalidArgument)
	}
	return nil
}

// bookSteps books work whose amount no entry's size tells.
func (u *unpacker) bookSteps(n int) error {
	if u.steps += int64(n); u.steps > stepsPerEntry*u.limits.Entries+ratioFrom/1024 {
		return fmt.Errorf("paths of the layer are too long for their number: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

func (u *unpacker) canceled() error {
	if u.ctx.Err() != nil {
		return context.Cause(u.ctx)
	}
	return nil
}

// classify gives the kernel's refusals a kind: whether the node has no room or
// the layer asks for what cannot be.
func classify(err error) error {
	if err == nil || errdefs.IsInvalidArgument(err) {
		return err
	}
	for _, full := range []error{unix.ENOSPC, unix.EDQUOT} {
		if errors.Is(err, full) {
			return fmt.Errorf("%w: %w", err, errdefs.ErrResourceExhausted)
		}
	}
	for _, bad := range []error{unix.ENAMETOOLONG, unix.ENOTDIR, unix.ELOOP, unix.EEXIST, unix.ENOENT, unix.EISDIR,
		unix.EINVAL, unix.E2BIG, unix.ERANGE, unix.EFBIG, unix.EMLINK, unix.ENOTSUP, unix.EXDEV} {
		if errors.Is(err, bad) {
			return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
		}
	}
	return err
}

// abbreviate keeps a hostile name from filling the log.
func abbreviate(s string) string {
	if len(s) > 256 {
		return s[:256] + "…"
	}
	return s
}
