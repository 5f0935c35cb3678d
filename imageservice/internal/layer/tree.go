package layer

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/imageservice/internal/tree"
)

const (
	// maxOpenDirs bounds the directory descriptors kept per layer.
	maxOpenDirs = 64
	// maxDepth is what PATH_MAX leaves of one-letter names; nothing deeper
	// could be opened in a container.
	maxDepth = 2048
	// maxSymlinks is the kernel's bound on links in one path.
	maxSymlinks = 40
)

// node is a directory or a symbolic link of the layer. Other files are not
// kept in memory, so that a layer of millions of them costs nothing.
type node struct {
	parent   *node
	name     string
	depth    int
	target   string           // of a symbolic link; "" for a directory
	children map[string]*node // of a directory; made when first needed
	fd       int              // of a directory; -1 while not open

	listed bool // the tar has an entry for this directory
	opaque bool // nothing of it shows from below
	mtime  time.Time
}

func (n *node) isDir() bool { return n.target == "" }

func (n *node) child(name string) *node { return n.children[name] }

// path is for messages and for looking the directory up in another tree.
func (n *node) path() string {
	if n.parent == nil {
		return ""
	}
	var parts []string
	for ; n.parent != nil; n = n.parent {
		parts = append(parts, n.name)
	}
	for i, j := 0, len(parts)-1; i < j; i, j = i+1, j-1 {
		parts[i], parts[j] = parts[j], parts[i]
	}
	return strings.Join(parts, "/")
}

// cutOff says whether the directory or one above it is opaque, that is,
// whether the layers below have nothing to say about it.
func (n *node) cutOff() bool {
	for ; n != nil; n = n.parent {
		if n.opaque {
			return true
		}
	}
	return false
}

func (u *unpacker) add(parent *node, name, target string) *node {
	n := &node{parent: parent, name: name, depth: parent.depth + 1, target: target, fd: -1}
	if parent.children == nil {
		parent.children = make(map[string]*node)
	}
	parent.children[name] = n
	u.nodes++
	return n
}

// forget drops a node and all below it, closing their descriptors.
func (u *unpacker) forget(n *node) {
	stack := []*node{n}
	for len(stack) > 0 {
		n := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		u.closeDir(n)
		u.nodes--
		for _, c := range n.children {
			stack = append(stack, c)
		}
	}
	delete(n.parent.children, n.name)
}

func (u *unpacker) closeDir(n *node) {
	if n.fd < 0 || n == u.root {
		return
	}
	unix.Close(n.fd)
	n.fd = -1
	for i, o := range u.open {
		if o == n {
			u.open = append(u.open[:i], u.open[i+1:]...)
			return
		}
	}
}

func (u *unpacker) closeDirs() {
	for _, n := range u.open {
		unix.Close(n.fd)
		n.fd = -1
	}
	u.open = nil
}

// dirFD returns the descriptor of a directory. It is valid until the next call.
func (u *unpacker) dirFD(n *node) (int, error) {
	if n.fd >= 0 {
		return n.fd, nil
	}
	// Upwards to the first open directory, then down again, one name each:
	// not recursive, since a hostile layer may be as deep as maxDepth.
	var closed []*node
	for ; n.fd < 0; n = n.parent {
		closed = append(closed, n)
	}
	fd := n.fd
	for i := len(closed) - 1; i >= 0; i-- {
		n := closed[i]
		sub, err := unix.Openat(fd, n.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, fmt.Errorf("opening directory %q: %w", n.path(), err)
		}
		// The oldest goes. The one just opened above is the newest of the
		// list, so it stays open as long as its child needs it.
		if len(u.open) >= maxOpenDirs {
			unix.Close(u.open[0].fd)
			u.open[0].fd = -1
			u.open = append(u.open[:0], u.open[1:]...)
		}
		n.fd = sub
		u.open = append(u.open, n)
		fd = sub
	}
	return fd, nil
}

// errAbsent is lookup's answer for a path that the layer does not have.
var errAbsent = errors.New("not in this layer")

// dir resolves the components of a directory's path. Symbolic links are
// followed beneath the root. What is missing is made when create is set, else
// errAbsent is returned.
func (u *unpacker) dir(parts []string, create bool) (*node, error) {
	n, links := u.root, 0
	for len(parts) > 0 {
		name := parts[0]
		parts = parts[1:]
		switch name {
		case "", ".":
			continue
		case "..": // only out of a symbolic link's text
			if n.parent != nil {
				n = n.parent
			}
			continue
		}
		c := n.child(name)
		if c == nil {
			if !create {
				return nil, errAbsent
			}
			var err error
			if c, err = u.imply(n, name); err != nil {
				return nil, err
			}
		}
		if c.isDir() {
			n = c
			continue
		}
		if links++; links > maxSymlinks {
			return nil, fmt.Errorf("more than %d symbolic links on the way to %q: %w", maxSymlinks, c.path(), errdefs.ErrInvalidArgument)
		}
		if strings.HasPrefix(c.target, "/") {
			n = u.root
		}
		parts = append(strings.Split(c.target, "/"), parts...)
	}
	return n, nil
}

// imply makes a directory that the tar uses before or without listing it.
func (u *unpacker) imply(parent *node, name string) (*node, error) {
	if strings.HasPrefix(name, whiteoutPrefix) {
		return nil, fmt.Errorf("directory named %q: %w", name, errdefs.ErrInvalidArgument)
	}
	n, err := u.mkdir(parent, name)
	if err != nil {
		return nil, fmt.Errorf("making directory %q: %w", join(parent, name), err)
	}
	return n, nil
}

// mkdir makes a directory that is not there as one. In place of a whiteout it
// becomes opaque; in place of another file it is refused with ENOTDIR.
func (u *unpacker) mkdir(parent *node, name string) (*node, error) {
	if parent.depth >= maxDepth {
		return nil, fmt.Errorf("deeper than %d directories: %w", maxDepth, errdefs.ErrInvalidArgument)
	}
	if err := u.count(4096); err != nil {
		return nil, err
	}
	fd, err := u.dirFD(parent)
	if err != nil {
		return nil, err
	}
	err = unix.Mkdirat(fd, name, 0o755)
	opaque := false
	if errors.Is(err, unix.EEXIST) {
		if white, err := isWhiteout(fd, name); err != nil {
			return nil, err
		} else if !white {
			return nil, unix.ENOTDIR
		}
		if err := unix.Unlinkat(fd, name, 0); err != nil {
			return nil, err
		}
		opaque = true
		err = unix.Mkdirat(fd, name, 0o755)
	}
	if err != nil {
		return nil, err
	}
	n := u.add(parent, name, "")
	if opaque {
		return n, u.makeOpaque(n)
	}
	return n, nil
}

func (u *unpacker) makeOpaque(n *node) error {
	n.opaque = true
	if n == u.root {
		return nil // overlayfs does not look at a layer's root: Result tells
	}
	fd, err := u.dirFD(n)
	if err != nil {
		return err
	}
	if err := unix.Fsetxattr(fd, "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		return fmt.Errorf("making directory %q opaque: %w", n.path(), err)
	}
	return nil
}

// remove deletes what is at a name of the layer, if anything.
func (u *unpacker) remove(parent *node, name string) error {
	fd, err := u.dirFD(parent)
	if err != nil {
		return err
	}
	n := parent.child(name)
	if n != nil {
		u.forget(n)
	}
	if n != nil && n.isDir() {
		return tree.Remove(u.ctx, fd, name)
	}
	if err := unix.Unlinkat(fd, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

func isWhiteout(fd int, name string) (bool, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, err
	}
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0, nil
}

func join(parent *node, name string) string {
	if p := parent.path(); p != "" {
		return p + "/" + name
	}
	return name
}
