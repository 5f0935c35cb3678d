package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"time"
	"unsafe"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// meta is what an entry says about a file besides its content.
type meta struct {
	uid, gid int
	mode     uint32 // permission bits, setuid, setgid, sticky
	mtime    time.Time
	xattrs   []xattr
}

type xattr struct{ name, value string }

func metadata(hdr *tar.Header) (meta, error) {
	// The last id is what chown understands as "leave it".
	if hdr.Uid < 0 || hdr.Gid < 0 || int64(hdr.Uid) >= math.MaxUint32 || int64(hdr.Gid) >= math.MaxUint32 {
		return meta{}, fmt.Errorf("owner %d:%d: %w", hdr.Uid, hdr.Gid, errdefs.ErrInvalidArgument)
	}
	m := meta{uid: hdr.Uid, gid: hdr.Gid, mode: uint32(hdr.Mode & 0o7777), mtime: hdr.ModTime}
	total := 0
	for key, value := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		if !ok {
			continue
		}
		keep, err := keepXattr(name)
		if err != nil {
			return meta{}, err
		}
		if !keep || (name == capability && hdr.Typeflag != tar.TypeReg && hdr.Typeflag != tar.TypeGNUSparse) {
			continue
		}
		if total += len(name) + len(value); total > maxXattrs {
			return meta{}, fmt.Errorf("extended attributes of more than %d bytes: %w", maxXattrs, errdefs.ErrInvalidArgument)
		}
		m.xattrs = append(m.xattrs, xattr{name, value})
	}
	return m, nil
}

const capability = "security.capability"

// keepXattr tells which extended attributes are part of an image. Those that
// overlayfs would take for its own are refused, those that belong to the
// machine where the image was made (labels, signatures, ACLs) dropped.
func keepXattr(name string) (bool, error) {
	if strings.HasPrefix(name, "trusted.") || strings.HasPrefix(name, "user.overlay.") {
		return false, fmt.Errorf("extended attribute %q: %w", abbreviate(name), errdefs.ErrInvalidArgument)
	}
	return name == capability || strings.HasPrefix(name, "user."), nil
}

// apply sets owner, mode and xattrs in the one order in which none undoes
// another: chown clears setuid bits and capabilities. What was made here belongs
// to root already.
func (m *meta) apply(fd int) error {
	if m.uid != 0 || m.gid != 0 {
		if err := unix.Fchown(fd, m.uid, m.gid); err != nil {
			return fmt.Errorf("setting owner %d:%d: %w", m.uid, m.gid, err)
		}
	}
	if err := unix.Fchmod(fd, m.mode); err != nil {
		return fmt.Errorf("setting mode %o: %w", m.mode, err)
	}
	for _, x := range m.xattrs {
		if err := unix.Fsetxattr(fd, x.name, []byte(x.value), 0); err != nil {
			return fmt.Errorf("setting extended attribute %q: %w", abbreviate(x.name), err)
		}
	}
	return nil
}

// applyByName is for symbolic links and devices, which cannot be opened. The
// name is one component that was just made here.
func (u *unpacker) applyByName(parent *node, name string, m meta, mode bool) error {
	fd, err := u.dirFD(parent)
	if err != nil {
		return err
	}
	if m.uid != 0 || m.gid != 0 {
		if err := unix.Fchownat(fd, name, m.uid, m.gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("setting owner %d:%d: %w", m.uid, m.gid, err)
		}
	}
	if mode {
		if err := unix.Fchmodat(fd, name, m.mode, 0); err != nil {
			return fmt.Errorf("setting mode %o: %w", m.mode, err)
		}
	}
	return setTimesAt(fd, name, m.mtime)
}

func setTimesAt(fd int, name string, t time.Time) error {
	ts := timespecs(t)
	return unix.UtimesNanoAt(fd, name, ts[:], unix.AT_SYMLINK_NOFOLLOW)
}

func timespecs(t time.Time) [2]unix.Timespec {
	// The kernel clamps to what the file system can keep; beyond int64
	// nanoseconds there are only made-up times.
	if s := t.Unix(); s < math.MinInt32 || s >= math.MaxInt64/int64(time.Second) {
		t = time.Unix(0, 0)
	}
	ts := unix.NsecToTimespec(t.UnixNano())
	return [2]unix.Timespec{ts, ts}
}

// setTimes is futimens, which x/sys does not have.
func setTimes(fd int, t time.Time) error {
	ts := timespecs(t)
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&ts[0])), 0, 0, 0)
	if errno != 0 {
		return fmt.Errorf("setting time: %w", errno)
	}
	return nil
}

// copy writes exactly size bytes to fd.
func (u *unpacker) copy(fd int, size int64, r io.Reader) error {
	u.bytes += uint64(size+4095) &^ 4095
	for size > 0 {
		n, err := r.Read(u.buf)
		if n > 0 {
			if err := writeAll(fd, u.buf[:n]); err != nil {
				return err
			}
			size -= int64(n)
		}
		if size <= 0 {
			return nil
		}
		if err != nil {
			return unexpected(err)
		}
	}
	return nil
}

// copySparse leaves holes where the file has only zeros. Those of a sparse file
// are read from nowhere, so this is where a huge one notices a cancellation.
func (u *unpacker) copySparse(fd int, size int64, r io.Reader) error {
	for off := int64(0); off < size; {
		if err := u.canceled(); err != nil {
			return err
		}
		b := u.buf[:min(int64(len(u.buf)), size-off)]
		if _, err := io.ReadFull(r, b); err != nil {
			return unexpected(err)
		}
		for len(b) > 0 {
			n, hole := run(b)
			if !hole {
				if err := pwriteAll(fd, b[:n], off); err != nil {
					return err
				}
				u.bytes += uint64(n+block-1) &^ (block - 1)
			}
			off += int64(n)
			b = b[n:]
		}
	}
	return unix.Ftruncate(fd, size)
}

// block is the unit in which holes are looked for.
const block = 4096

var zeros [block]byte

// run returns how many bytes at the beginning of b are whole blocks of zeros,
// or else are not.
func run(b []byte) (n int, hole bool) {
	for n < len(b) {
		part := b[n:min(n+block, len(b))]
		zero := bytes.Equal(part, zeros[:len(part)])
		if n > 0 && zero != hole {
			break
		}
		hole = zero
		n += len(part)
	}
	return n, hole
}

func isSparse(hdr *tar.Header) bool {
	if hdr.Typeflag == tar.TypeGNUSparse {
		return true
	}
	_, map1 := hdr.PAXRecords["GNU.sparse.major"]
	_, map0 := hdr.PAXRecords["GNU.sparse.map"]
	return map0 || map1
}

// unexpected is what reading less than was announced means. Whether the blob
// could not be read is told by the one who reads it.
func unexpected(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return err
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
}

func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func pwriteAll(fd int, b []byte, off int64) error {
	for len(b) > 0 {
		n, err := unix.Pwrite(fd, b, off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}
