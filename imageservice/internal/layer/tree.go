package layer

import (
	"errors"
	"fmt"
	"slices"
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

	listed  bool // the tar has an entry for this directory
	opaque  bool // nothing of it shows from below
	settled bool // it is not listed, but not below either
	mtime   time.Time
	mode    uint32
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
	slices.Reverse(parts)
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

func (u *unpacker) add(parent *node, name, target string) (*node, error) {
	if err := u.bookMemory(nodeMemory + len(name) + len(target)); err != nil {
		return nil, err
	}
	n := &node{parent: parent, name: name, depth: parent.depth + 1, target: target, fd: -1}
	if parent.children == nil {
		parent.children = make(map[string]*node)
	}
	parent.children[name] = n
	return n, nil
}

// forget drops a node and all below it, closing their descriptors.
func (u *unpacker) forget(n *node) {
	stack := []*node{n}
	for len(stack) > 0 {
		n := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		u.closeDir(n)
		u.memory -= nodeMemory + len(n.name) + len(n.target)
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
	// From the nearest open directory above, as many names at a time as one
	// path may have: a hostile layer may be as deep as maxDepth.
	var names []string
	top := n
	for ; top.fd < 0; top = top.parent {
		names = append(names, top.name)
	}
	if err := u.bookSteps(len(names)); err != nil {
		return -1, err
	}
	slices.Reverse(names)
	at := top.fd
	for {
		path := names[0]
		for names = names[1:]; len(names) > 0 && len(path)+1+len(names[0]) < maxName; names = names[1:] {
			path += "/" + names[0]
		}
		fd, err := unix.Openat2(at, path, &unix.OpenHow{
			Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
			Resolve: beneath,
		})
		if at != top.fd {
			unix.Close(at)
		}
		if err != nil {
			return -1, fmt.Errorf("opening directory %q: %w", abbreviate(n.path()), err)
		}
		if at = fd; len(names) == 0 {
			break
		}
	}
	if len(u.open) >= maxOpenDirs { // the oldest goes
		unix.Close(u.open[0].fd)
		u.open[0].fd = -1
		u.open = append(u.open[:0], u.open[1:]...)
	}
	n.fd = at
	u.open = append(u.open, n)
	return at, nil
}

// beneath makes openat2 refuse what leaves the directory, and every link.
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// errAbsent is lookup's answer for a path that the layer does not have.
var errAbsent = errors.New("not in this layer")

// dir resolves the components of a directory's path. Symbolic links are
// followed beneath the root. What is missing is made when create is set, else
// errAbsent is returned.
func (u *unpacker) dir(parts []string, create bool) (*node, error) {
	n, links := u.root, 0
	for len(parts) > 0 {
		if err := u.bookSteps(1); err != nil {
			return nil, err
		}
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
			return nil, fmt.Errorf("more than %d symbolic links on the way to %q: %w", maxSymlinks, abbreviate(c.path()), errdefs.ErrInvalidArgument)
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
	if err := u.bookEntry(); err != nil {
		return nil, err
	}
	n, err := u.mkdir(parent, name)
	if err != nil {
		return nil, fmt.Errorf("making directory %q: %w", abbreviate(join(parent, name)), err)
	}
	return n, nil
}

// mkdir makes a directory that is not there as one. In place of a whiteout it
// becomes opaque; in place of another file it is refused with ENOTDIR.
func (u *unpacker) mkdir(parent *node, name string) (*node, error) {
	if parent.depth >= maxDepth {
		return nil, fmt.Errorf("deeper than %d directories: %w", maxDepth, errdefs.ErrInvalidArgument)
	}
	u.count(4096)
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
		u.inodes--
		opaque = true
		err = unix.Mkdirat(fd, name, 0o755)
	}
	if err != nil {
		return nil, err
	}
	n, err := u.add(parent, name, "")
	if err == nil && opaque {
		err = u.makeOpaque(n)
	}
	return n, err
}

func (u *unpacker) makeOpaque(n *node) error {
	if n.opaque {
		return nil // a marker costs nothing the second time
	}
	n.opaque = true
	if n == u.root {
		return nil // overlayfs does not look at a layer's root: Result tells
	}
	fd, err := u.dirFD(n)
	if err != nil {
		return err
	}
	if err := unix.Fsetxattr(fd, "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		return fmt.Errorf("making directory %q opaque: %w", abbreviate(n.path()), err)
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
	if n == nil || !n.isDir() {
		if err = unix.Unlinkat(fd, name, 0); errors.Is(err, unix.ENOENT) {
			return nil
		}
		u.replaced = true
		return err
	}
	if unix.Unlinkat(fd, name, unix.AT_REMOVEDIR) == nil {
		u.bytes, u.inodes = u.bytes-4096, u.inodes-1
		return nil
	}
	u.replaced = true
	return tree.Remove(u.ctx, fd, name)
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
