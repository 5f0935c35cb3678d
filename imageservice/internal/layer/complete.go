package layer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// maxMoves bounds how many implied directories may be links below: each costs
// a look at the whole tree, and no honest image has more than a handful.
const maxMoves = 256

func (u *unpacker) dependent() bool {
	return len(u.links) > 0 || len(u.implied()) > 0
}

// implied lists the directories that the layers below have a say in, parents
// first.
func (u *unpacker) implied() []*node {
	var list []*node
	stack := []*node{u.root}
	for len(stack) > 0 {
		n := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if n.opaque {
			continue // nor in anything beneath
		}
		if !n.listed && n != u.root {
			list = append(list, n)
		}
		for _, c := range n.children {
			if c.isDir() {
				stack = append(stack, c)
			}
		}
	}
	return list
}

// Complete makes good what the layer needs of those below. rootFD is the
// layer's directory, lowerFD the root of the merged layers below, -1 if it is
// the lowest. Nobody else may use the layer yet. Called once.
func (r *Result) Complete(ctx context.Context, rootFD, lowerFD int) error {
	u := r.u
	u.ctx = ctx
	u.root.fd = rootFD
	u.buf = make([]byte, bufferSize)
	c := completer{unpacker: u, lower: lowerFD}
	for _, l := range u.links {
		if err := c.hardLink(l); err != nil {
			u.closeDirs()
			return fmt.Errorf("hard link %q to %q: %w", abbreviate(l.name), abbreviate(l.target), err)
		}
	}
	if err := c.directories(); err != nil {
		u.closeDirs()
		return err
	}
	r.Bytes, r.Inodes, r.u = u.bytes, u.inodes, nil
	return u.finish()
}

type completer struct {
	*unpacker
	lower int
	moves int
}

// lookup opens a path of the layers below without following any link; a
// symbolic link itself is opened. A path that runs through one is absent: the
// layer has a directory in its place.
func (c *completer) lookup(path string) (fd int, st unix.Stat_t, err error) {
	if c.lower < 0 {
		return -1, st, unix.ENOENT
	}
	fd, err = unix.Openat2(c.lower, path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
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

func (c *completer) hardLink(l hardLink) error {
	parts := strings.Split(l.name, "/")
	name := parts[len(parts)-1]
	parent, err := c.dir(parts[:len(parts)-1], true)
	if err != nil {
		return err
	}
	fd, err := c.dirFD(parent)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	err = unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil {
		return nil // a later entry of the same name has taken its place
	}
	if !errors.Is(err, unix.ENOENT) {
		return err
	}
	target := strings.Split(l.target, "/")
	if err = c.link(parent, name, target); !errors.Is(err, errAbsent) {
		return err // it came later in the tar, or with an earlier link
	}
	real, err := c.resolve(nil, target[:len(target)-1], nil)
	if err != nil {
		return err
	}
	real = append(real, target[len(target)-1])
	if err := c.copyUp(real); err != nil {
		return err
	}
	return c.link(parent, name, real)
}

// copyUp makes a copy of a lower file in the layer, at the same place.
func (c *completer) copyUp(parts []string) error {
	path, name := strings.Join(parts, "/"), parts[len(parts)-1]
	parent, err := c.dir(parts[:len(parts)-1], true)
	if err != nil {
		return err
	}
	if parent.cutOff() {
		return fmt.Errorf("no such file in the image: %w", errdefs.ErrInvalidArgument)
	}
	from, st, err := c.lookup(path)
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("no such file in the image: %w", errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return err
	}
	defer unix.Close(from)
	fd, err := c.dirFD(parent)
	if err != nil {
		return err
	}
	m := lowerMeta(&st)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return c.copyFile(fd, name, path, &st)
	case unix.S_IFLNK:
		target, err := readlink(from)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(target, fd, name); err != nil {
			return err
		}
		c.add(parent, name, target)
		return c.applyByName(parent, name, m, false)
	case unix.S_IFIFO, unix.S_IFCHR, unix.S_IFBLK:
		if err := unix.Mknodat(fd, name, st.Mode, int(st.Rdev)); err != nil {
			return err
		}
		return c.applyByName(parent, name, m, true)
	}
	return fmt.Errorf("neither file nor link: %w", errdefs.ErrInvalidArgument)
}

func (c *completer) copyFile(dirFD int, name, path string, st *unix.Stat_t) error {
	in, err := unix.Openat2(c.lower, path, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
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
	if err := c.count(0); err != nil {
		return err
	}
	if err := c.copy(out, st.Size, src); err != nil {
		return err
	}
	m := lowerMeta(st)
	if m.xattrs, err = xattrs(in); err != nil {
		return err
	}
	if err := m.apply(out); err != nil {
		return err
	}
	return setTimes(out, m.mtime)
}

// directories gives every implied directory what it has below.
func (c *completer) directories() error {
	for {
		moved := false
		for _, n := range c.implied() {
			move, err := c.directory(n)
			if err != nil {
				return fmt.Errorf("completing directory %q: %w", n.path(), err)
			}
			if moved = move; moved {
				break // the list is out of date
			}
		}
		if !moved {
			return nil
		}
	}
}

func (c *completer) directory(n *node) (moved bool, err error) {
	fd, st, err := c.lookup(n.path())
	if errors.Is(err, unix.ENOENT) {
		return false, nil // a new directory, as it was made
	}
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return false, c.inherit(n, fd, &st)
	case unix.S_IFLNK:
		target, err := readlink(fd)
		if err != nil {
			return false, err
		}
		if c.moves++; c.moves > maxMoves {
			return false, fmt.Errorf("more than %d directories that are links below: %w", maxMoves, errdefs.ErrInvalidArgument)
		}
		return true, c.move(n, target)
	}
	return false, nil // hides a file
}

func (c *completer) inherit(n *node, lowerFD int, st *unix.Stat_t) error {
	m := lowerMeta(st)
	in, err := unix.Openat(lowerFD, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	m.xattrs, err = xattrs(in)
	unix.Close(in)
	if err != nil {
		return err
	}
	return c.listDir(n, m)
}

func readlink(fd int) (string, error) {
	buf := make([]byte, maxName)
	n, err := unix.Readlinkat(fd, "", buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

func lowerMeta(st *unix.Stat_t) meta {
	return meta{
		uid: int(st.Uid), gid: int(st.Gid), mode: st.Mode & 0o7777,
		mtime: time.Unix(st.Mtim.Unix()),
	}
}

// xattrs reads those that belong to an image.
func xattrs(fd int) ([]xattr, error) {
	size, err := unix.Flistxattr(fd, nil)
	if errors.Is(err, unix.ENOTSUP) || (err == nil && size == 0) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names := make([]byte, size)
	if size, err = unix.Flistxattr(fd, names); err != nil {
		return nil, err
	}
	var list []xattr
	for name := range strings.SplitSeq(string(names[:size]), "\x00") {
		if keep, err := keepXattr(name); !keep || err != nil {
			continue // overlayfs' own are not the image's
		}
		size, err := unix.Fgetxattr(fd, name, nil)
		if err != nil {
			return nil, err
		}
		value := make([]byte, size)
		if size, err = unix.Fgetxattr(fd, name, value); err != nil {
			return nil, err
		}
		list = append(list, xattr{name, string(value[:size])})
	}
	return list, nil
}
