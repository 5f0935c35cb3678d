package layer

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// hardlink links to a file of this layer, or remembers a target that must be
// in a layer below.
func (u *unpacker) hardlink(parent *node, name, linkname string) error {
	parts, err := split(linkname)
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", abbreviate(linkname), err)
	}
	if len(parts) == 0 {
		return fmt.Errorf("hard link to the root: %w", errdefs.ErrInvalidArgument)
	}
	err = u.link(parent, name, parts)
	if errors.Is(err, errAbsent) {
		if err := u.remove(parent, name); err != nil {
			return err
		}
		if err := u.bookMemory(nodeMemory/4 + len(name) + len(linkname) + parent.depth*8); err != nil {
			return err
		}
		u.links = append(u.links, hardLink{name: join(parent, name), target: strings.Join(parts, "/")})
		return nil
	}
	return err
}

// link makes a hard link within the layer; errAbsent when the layer does not
// have the target.
func (u *unpacker) link(parent *node, name string, target []string) error {
	dir, err := u.dir(target[:len(target)-1], false)
	if err != nil {
		return err
	}
	base := target[len(target)-1]
	old := dir.child(base)
	if old != nil && old.isDir() {
		return fmt.Errorf("hard link to directory %q: %w", abbreviate(join(dir, base)), errdefs.ErrInvalidArgument)
	}
	fd, err := u.dirFD(dir)
	if err != nil {
		return err
	}
	// Its own descriptor: that of the link's directory may push it out.
	if fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		return err
	}
	defer unix.Close(fd)
	white, err := isWhiteout(fd, base)
	if errors.Is(err, unix.ENOENT) {
		return errAbsent
	}
	if err != nil {
		return err
	}
	if white {
		return fmt.Errorf("hard link to %q, which the layer removes: %w", abbreviate(join(dir, base)), errdefs.ErrInvalidArgument)
	}
	err = u.create(parent, name, func(to int) error { return unix.Linkat(fd, base, to, name, 0) })
	if errors.Is(err, unix.EMLINK) {
		err = u.splitLinks(fd, base, parent, name)
	}
	if err == nil && old != nil && parent.child(name) == nil {
		_, err = u.add(parent, name, old.target)
	}
	return err
}

// splitLinks makes a copy of a file that has as many links as the file system lets
// it have. The copy takes the place of the original, so that the next links are
// to it and each of them is not one more copy.
func (u *unpacker) splitLinks(fd int, base string, parent *node, name string) error {
	if err := u.duplicate(fd, base, parent, name); err != nil {
		return err
	}
	if err := unix.Unlinkat(fd, base, 0); err != nil {
		return err
	}
	to, err := u.dirFD(parent)
	if err != nil {
		return err
	}
	return unix.Linkat(to, name, fd, base, 0)
}

// duplicate copies a file, a link or a device beneath a directory, with all
// that belongs to it.
func (u *unpacker) duplicate(fromDir int, path string, parent *node, name string) error {
	from, st, err := lookup(fromDir, path)
	if err != nil {
		return err
	}
	defer unix.Close(from)
	fd, err := u.dirFD(parent)
	if err != nil {
		return err
	}
	u.count(0)
	m := statMeta(&st)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return u.duplicateContent(fromDir, path, fd, name, &st)
	case unix.S_IFLNK:
		target, err := readlink(from)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(target, fd, name); err != nil {
			return err
		}
		if _, err := u.add(parent, name, target); err != nil {
			return err
		}
		return u.applyByName(parent, name, m, false)
	case unix.S_IFIFO, unix.S_IFCHR, unix.S_IFBLK:
		if err := unix.Mknodat(fd, name, st.Mode, int(st.Rdev)); err != nil {
			return err
		}
		return u.applyByName(parent, name, m, true)
	}
	return fmt.Errorf("neither file nor link: %w", errdefs.ErrInvalidArgument)
}

func (u *unpacker) duplicateContent(fromDir int, path string, dirFD int, name string, st *unix.Stat_t) error {
	if err := u.bookFile(st.Size); err != nil {
		return err
	}
	in, err := unix.Openat2(fromDir, path, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC,
		Resolve: beneath,
	})
	if err != nil {
		return err
	}
	src := os.NewFile(uintptr(in), path)
	defer src.Close()
	out, err := unix.Openat(dirFD, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(out)
	if err := u.copySparse(out, st.Size, src); err != nil {
		return err
	}
	m := statMeta(st)
	if m.xattrs, err = xattrs(in); err != nil {
		return err
	}
	if err := m.apply(out); err != nil {
		return err
	}
	return setTimes(out, m.mtime)
}

// lookup opens a path beneath a directory without following any link; a
// symbolic link itself is opened. A path that runs through one is absent.
func lookup(dir int, path string) (fd int, st unix.Stat_t, err error) {
	if dir < 0 {
		return -1, st, unix.ENOENT
	}
	fd, err = unix.Openat2(dir, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: beneath})
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENAMETOOLONG) {
		err = unix.ENOENT
	}
	if err != nil {
		return -1, st, err
	}
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, st, err
	}
	// The lowest layer's whiteouts hide nothing and show through.
	if st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 {
		unix.Close(fd)
		return -1, st, unix.ENOENT
	}
	return fd, st, nil
}

func readlink(fd int) (string, error) {
	buf := make([]byte, maxName)
	n, err := unix.Readlinkat(fd, "", buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

func statMeta(st *unix.Stat_t) meta {
	return meta{
		uid: int(st.Uid), gid: int(st.Gid), mode: st.Mode & 0o7777,
		mtime: time.Unix(st.Mtim.Unix()),
	}
}
