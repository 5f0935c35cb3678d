package layer

import (
	"archive/tar"
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
	for key, value := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		if !ok {
			continue
		}
		keep, err := keepXattr(name)
		if err != nil {
			return meta{}, err
		}
		if keep {
			m.xattrs = append(m.xattrs, xattr{name, value})
		}
	}
	return m, nil
}

// keepXattr tells which extended attributes are part of an image. Those that
// overlayfs would take for its own are refused, those that belong to the
// machine where the image was made (labels, signatures, ACLs) dropped.
func keepXattr(name string) (bool, error) {
	if strings.HasPrefix(name, "trusted.") || strings.HasPrefix(name, "user.overlay.") {
		return false, fmt.Errorf("extended attribute %q: %w", abbreviate(name), errdefs.ErrInvalidArgument)
	}
	return name == "security.capability" || strings.HasPrefix(name, "user."), nil
}

// apply sets owner, mode and xattrs in the one order in which none undoes
// another: chown clears setuid bits and capabilities.
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
	ts := timespecs(m.mtime)
	return unix.UtimesNanoAt(fd, name, ts[:], unix.AT_SYMLINK_NOFOLLOW)
}

func timespecs(t time.Time) [2]unix.Timespec {
	// The kernel clamps to what the file system can keep; beyond int64
	// nanoseconds there are only made-up times.
	if s := t.Unix(); s < math.MinInt32 || s > math.MaxInt64/int64(time.Second) {
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

// copySparse leaves holes where the file has only zeros.
func (u *unpacker) copySparse(fd int, size int64, r io.Reader) error {
	const block = 4096
	var off int64
	for off < size {
		n, err := io.ReadFull(r, u.buf[:min(int64(len(u.buf)), size-off)])
		if err != nil {
			return unexpected(err)
		}
		for b := u.buf[:n]; len(b) > 0; {
			part := b[:min(block, len(b))]
			if !zero(part) {
				if _, err := unix.Pwrite(fd, part, off); err != nil {
					return err
				}
				u.bytes += block
			}
			off += int64(len(part))
			b = b[len(part):]
		}
	}
	return unix.Ftruncate(fd, size)
}

func isSparse(hdr *tar.Header) bool {
	if hdr.Typeflag == tar.TypeGNUSparse {
		return true
	}
	_, map1 := hdr.PAXRecords["GNU.sparse.major"]
	_, map0 := hdr.PAXRecords["GNU.sparse.map"]
	return map0 || map1
}

func zero(b []byte) bool {
	for len(b) >= 8 {
		if *(*uint64)(unsafe.Pointer(&b[0])) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
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
