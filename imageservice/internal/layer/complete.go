package layer

import (
	"context"
	"errors"
	"fmt"
	"strings"

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
		if !n.listed && !n.settled && n != u.root {
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
			return fmt.Errorf("hard link %q to %q: %w", abbreviate(l.name), abbreviate(l.target), classify(err))
		}
	}
	if err := c.directories(); err != nil {
		u.closeDirs()
		return classify(err)
	}
	if err := u.finish(); err != nil {
		return err
	}
	r.Bytes, r.Inodes, r.u = u.bytes, u.inodes, nil
	return nil
}

type completer struct {
	*unpacker
	lower int
	moves int
}

func (c *completer) hardLink(l hardLink) error {
	if err := c.canceled(); err != nil {
		return err
	}
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
	err = c.duplicate(c.lower, path, parent, name)
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("no such file in the image: %w", errdefs.ErrInvalidArgument)
	}
	return err
}

// directories gives every implied directory what it has below.
func (c *completer) directories() error {
	for {
		moved := false
		for _, n := range c.implied() {
			if err := c.canceled(); err != nil {
				return err
			}
			move, err := c.directory(n)
			if err != nil {
				return fmt.Errorf("completing directory %q: %w", abbreviate(n.path()), err)
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
	fd, st, err := lookup(c.lower, n.path())
	if errors.Is(err, unix.ENOENT) {
		n.settled = true // a new directory, as it was made
		return false, nil
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
	n.settled = true // hides a file
	return false, nil
}

func (c *completer) inherit(n *node, lowerFD int, st *unix.Stat_t) error {
	m := statMeta(st)
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
