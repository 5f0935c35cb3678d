package inroot

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"
)

// ReadFile returns the content of a regular file of at most max bytes. Another
// kind of file is refused without being opened, for a device or FIFO can block
// or act on open. A missing file is fs.ErrNotExist.
func ReadFile(root, name string, max int64) ([]byte, error) {
	data, err := readFile(root, name, max)
	if err != nil {
		return nil, fmt.Errorf("reading %q beneath %s: %w", name, root, err)
	}
	return data, nil
}

func readFile(root, name string, max int64) ([]byte, error) {
	r, err := openRoot(root)
	if err != nil {
		return nil, err
	}
	defer unix.Close(r)
	fd, err := open(r, name, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("it is no regular file: %w", errdefs.ErrInvalidArgument)
	}
	// Through the descriptor, so that it is this very file that is opened.
	f, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(fd), os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	tooLarge := fmt.Errorf("it has more than %d bytes: %w", max, errdefs.ErrInvalidArgument)
	if st.Size > max {
		return nil, tooLarge
	}
	data, err := io.ReadAll(io.LimitReader(f, max+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > max {
		return nil, tooLarge
	}
	return data, nil
}

// MkdirAll makes the directory name and those above it where they are missing,
// each with the given mode (whatever the umask) and owner. What exists is left
// as it is. A component that is neither a directory nor a link to one is an
// error, as is ".." in name, which has no meaning below what does not exist.
func MkdirAll(root, name string, mode os.FileMode, uid, gid int) error {
	if err := mkdirAll(root, name, mode, uid, gid); err != nil {
		return fmt.Errorf("making directory %q beneath %s: %w", name, root, err)
	}
	return nil
}

func mkdirAll(root, name string, mode os.FileMode, uid, gid int) error {
	if slices.Contains(strings.Split(name, "/"), "..") {
		return fmt.Errorf("the path holds \"..\": %w", errdefs.ErrInvalidArgument)
	}
	r, err := openRoot(root)
	if err != nil {
		return err
	}
	defer unix.Close(r)
	if fd, err := open(r, name, unix.O_PATH|unix.O_DIRECTORY); err == nil {
		return unix.Close(fd) // the usual case: it is there
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// Every prefix is resolved anew from the root, for a link in it is relative
	// to that; only the new name itself is relative to the descriptor of its parent.
	prefix := "/"
	for part := range strings.SplitSeq(strings.Trim(path.Clean("/"+name), "/"), "/") {
		parent, err := open(r, prefix, unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		prefix = path.Join(prefix, part)
		fd, err := open(r, prefix, unix.O_PATH|unix.O_DIRECTORY)
		switch {
		case err == nil:
			unix.Close(fd)
		case errors.Is(err, fs.ErrNotExist):
			err = mkdirAt(parent, part, mode, uid, gid)
		}
		unix.Close(parent)
		if err != nil {
			return err
		}
	}
	return nil
}

// mkdirAt makes one directory. Another that came first is left alone, as is a
// link that leads nowhere; the next step finds out.
func mkdirAt(parent int, name string, mode os.FileMode, uid, gid int) error {
	err := unix.Mkdirat(parent, name, 0o700)
	if err == unix.EEXIST {
		var st unix.Stat_t
		if err := unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return fmt.Errorf("%q is a link to nothing: %w", name, errdefs.ErrInvalidArgument)
		}
		return nil
	}
	if err != nil {
		return err
	}
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// In this order: a change of owner drops set-id bits.
	if err := unix.Fchown(fd, uid, gid); err != nil {
		return err
	}
	return unix.Fchmod(fd, syscallMode(mode))
}

func syscallMode(m os.FileMode) uint32 {
	bits := uint32(m.Perm())
	for flag, bit := range map[os.FileMode]uint32{fs.ModeSetuid: unix.S_ISUID, fs.ModeSetgid: unix.S_ISGID, fs.ModeSticky: unix.S_ISVTX} {
		if m&flag != 0 {
			bits |= bit
		}
	}
	return bits
}

// Resolve returns the path on the host, without links, of an existing file
// beneath root. It holds as long as nobody who can write beneath root runs, so
// use it before the container is started. A missing file is fs.ErrNotExist.
func Resolve(root, name string) (string, error) {
	p, err := resolve(root, name)
	if err != nil {
		return "", fmt.Errorf("resolving %q beneath %s: %w", name, root, err)
	}
	return p, nil
}

func resolve(root, name string) (string, error) {
	r, err := openRoot(root)
	if err != nil {
		return "", err
	}
	defer unix.Close(r)
	fd, err := open(r, name, unix.O_PATH)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	base, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(r))
	if err != nil {
		return "", err
	}
	p, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return "", err
	}
	if p != base && !strings.HasPrefix(p, strings.TrimSuffix(base, "/")+"/") {
		return "", fmt.Errorf("it is %q, not beneath the root: %w", p, errdefs.ErrFailedPrecondition)
	}
	return p, nil
}

func openRoot(root string) (int, error) {
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("opening the root: %w", err)
	}
	return fd, nil
}

// open resolves name with the directory root as its root. The kernel answers
// EAGAIN when something was renamed meanwhile and it cannot rule out an escape;
// that is tried again, but not for ever.
func open(root int, name string, flags uint64) (int, error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for try := 0; ; try++ {
		fd, err := unix.Openat2(root, name, &how)
		if (err == unix.EAGAIN || err == unix.EINTR) && try < 128 {
			continue
		}
		if err == unix.ELOOP || err == unix.ENOTDIR {
			err = fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument) // the image's doing
		}
		return fd, err
	}
}
