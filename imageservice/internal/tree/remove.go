package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	// heldDirs is how many levels are held open at a time. A directory deeper
	// than that is first moved to the top, so that a tree of a million levels
	// needs neither a million descriptors nor a deep stack.
	heldDirs = 64
	// refills is how often a tree is emptied again that somebody else fills
	// meanwhile.
	refills = 10
)

const openDir = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC

// openIn opens a name in a directory: never through a link, and never what is
// mounted there, for that is somebody else's.
func openIn(fd int, name string, flags uint64) (*os.File, error) {
	how := unix.OpenHow{Flags: flags, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV}
	for {
		sub, err := unix.Openat2(fd, name, &how)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.EXDEV) {
			return nil, fmt.Errorf("something is mounted at %q: %w", name, err)
		}
		if err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(sub), name), nil
	}
}

// Remove deletes name in the directory dirfd with all that is below it, what
// is immutable or append-only too. It follows no link and does not go into what
// is mounted below. What cannot be deleted does not keep the rest; the error is
// the first one. Absent is nil.
func Remove(ctx context.Context, dirfd int, name string) error {
	r := remover{ctx: ctx}
	for left := refills; left > 0; {
		gone, err := r.round(dirfd, name)
		if gone {
			return nil
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("removing %q: %w", name, err)
		}
		if !r.moved {
			left--
		}
	}
	return fmt.Errorf("removing %q: somebody fills it meanwhile: %w", name, unix.ENOTEMPTY)
}

type remover struct {
	ctx   context.Context
	top   *os.File
	next  int   // names what is moved to the top
	moved bool  // something was in this round
	err   error // the first of this round
}

// round deletes what it can. When all of that went well and the tree is still
// there, another round is needed: for what was moved, or was made meanwhile.
func (r *remover) round(dirfd int, name string) (gone bool, err error) {
	r.moved, r.err = false, nil
	if err := unlink(dirfd, name, 0, false); !errors.Is(err, unix.EISDIR) {
		return err == nil, err
	}
	top, err := openIn(dirfd, name, openDir)
	if err != nil {
		return errors.Is(err, unix.ENOENT), absent(err)
	}
	defer top.Close()
	r.top = top
	r.empty(top, 0)
	if r.err != nil {
		return false, r.err
	}
	err = unlink(dirfd, name, unix.AT_REMOVEDIR, false)
	if errors.Is(err, unix.ENOTEMPTY) {
		return false, nil
	}
	return err == nil, err
}

func absent(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// empty deletes all entries of a directory, or moves those to the top that are
// too deep.
func (r *remover) empty(dir *os.File, depth int) {
	for r.ctx.Err() == nil {
		names, err := dir.Readdirnames(256)
		for _, name := range names {
			if err := r.entry(int(dir.Fd()), name, depth); err != nil && r.err == nil {
				r.err = fmt.Errorf("%q: %w", name, err)
			}
		}
		if err != nil && !errors.Is(err, io.EOF) && absent(err) != nil && r.err == nil {
			r.err = err // ENOENT: somebody else has removed the directory
		}
		if err != nil || len(names) == 0 {
			return
		}
	}
}

func (r *remover) entry(fd int, name string, depth int) error {
	if err := unlink(fd, name, 0, true); !errors.Is(err, unix.EISDIR) {
		return err
	}
	if depth >= heldDirs {
		return r.moveUp(fd, name)
	}
	sub, err := openIn(fd, name, openDir)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil // it is another thing by now: for the next round
	}
	if err != nil {
		return absent(err)
	}
	r.empty(sub, depth+1)
	sub.Close()
	err = unlink(fd, name, unix.AT_REMOVEDIR, true)
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.ENOTDIR) {
		return nil // for the next round
	}
	return err
}

func (r *remover) moveUp(fd int, name string) error {
	for {
		r.next++
		err := unix.Renameat2(fd, name, int(r.top.Fd()), ".deep"+strconv.Itoa(r.next), unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		r.moved = r.moved || err == nil
		return absent(err)
	}
}

// unlink deletes one name; absent is nil. Where an attribute of the file or,
// if that is ours, of the directory forbids it, the attribute goes first.
func unlink(fd int, name string, flags int, ours bool) error {
	err := unix.Unlinkat(fd, name, flags)
	if !errors.Is(err, unix.EPERM) {
		return absent(err)
	}
	if f, oerr := openIn(fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC); oerr == nil {
		unprotect(f)
		f.Close()
	}
	if ours {
		clearFlags(fd)
	}
	return absent(unix.Unlinkat(fd, name, flags))
}

// unprotect lets a regular file or directory be deleted. Others are not opened:
// a device or a FIFO acts on it, and they have no attributes.
func unprotect(f *os.File) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return
	}
	// Through the descriptor, so that it is this very file that is opened.
	fd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	clearFlags(fd)
	unix.Close(fd)
}

// FS_IMMUTABLE_FL and FS_APPEND_FL of linux/fs.h.
const protected = 0x10 | 0x20

func clearFlags(fd int) {
	flags, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
	if err == nil && flags&protected != 0 {
		// That it did not help is seen when the file is still there.
		_ = unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, int(flags&^protected))
	}
}
