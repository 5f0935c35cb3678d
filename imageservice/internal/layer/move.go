package layer

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// move puts the content of an implied directory that is a symbolic link below
// to where the link leads.
func (c *completer) move(n *node, target string) error {
	if err := c.putAside(n); err != nil {
		return err
	}
	var start []string
	if p := n.parent.path(); p != "" {
		start = strings.Split(p, "/")
	}
	real, err := c.resolve(start, strings.Split(target, "/"), &target)
	if err != nil {
		return err
	}
	to, err := c.dir(real, true)
	if err != nil {
		return err
	}
	for p := to; p != nil; p = p.parent {
		if p == n {
			return fmt.Errorf("symbolic link %q leads into itself: %w", abbreviate(target), errdefs.ErrInvalidArgument)
		}
	}
	if err := c.merge(n, to); err != nil {
		return err
	}
	return c.remove(n.parent, n.name)
}

// putAside renames a directory, so that it does not stand in its own way.
func (c *completer) putAside(n *node) error {
	fd, err := c.dirFD(n.parent)
	if err != nil {
		return err
	}
	for i := 0; ; i++ {
		aside := fmt.Sprintf(".gantry-moved-%d", i)
		err := unix.Renameat2(fd, n.name, fd, aside, unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EEXIST) && i < maxMoves {
			continue // the layer's own
		}
		if err != nil {
			return err
		}
		delete(n.parent.children, n.name)
		n.name = aside
		n.parent.children[aside] = n
		return nil
	}
}

// merge moves what is in from into to. What both have stays as to has it,
// but for directories, which are merged. It empties from a few names at a time
// until nothing is left.
func (c *completer) merge(from, to *node) error {
	for {
		names, err := c.names(from)
		if err != nil || len(names) == 0 {
			return err
		}
		for _, name := range names {
			if err := c.mergeOne(from, to, name); err != nil {
				return err
			}
		}
	}
}

func (c *completer) mergeOne(from, to *node, name string) error {
	if err := c.canceled(); err != nil {
		return err
	}
	fd, err := c.dirFD(from)
	if err != nil {
		return err
	}
	if fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		return err
	}
	defer unix.Close(fd)
	toFD, err := c.dirFD(to)
	if err != nil {
		return err
	}
	err = unix.Renameat2(fd, name, toFD, name, unix.RENAME_NOREPLACE)
	a, b := from.child(name), to.child(name)
	switch {
	case err == nil && a != nil:
		delete(from.children, name)
		if to.children == nil {
			to.children = make(map[string]*node)
		}
		a.parent = to
		to.children[name] = a
		return nil
	case errors.Is(err, unix.EEXIST):
		if a != nil && b != nil && a.isDir() && b.isDir() {
			if err := c.merge(a, b); err != nil {
				return err
			}
		}
		return c.remove(from, name)
	}
	return err
}

// names lists some of what is in a directory; none when it is empty.
func (c *completer) names(n *node) ([]string, error) {
	fd, err := c.dirFD(n)
	if err != nil {
		return nil, err
	}
	own, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(own), n.name)
	defer f.Close()
	names, err := f.Readdirnames(1024)
	if err == io.EOF {
		err = nil
	}
	return names, err
}

// resolve finds the real place of a directory in the image as it is with this
// layer on top: start is a real place, parts go on from it. Components that
// do not exist stay as they are.
func (c *completer) resolve(start, parts []string, text *string) ([]string, error) {
	real, links := slices.Clone(start), 0
	if text != nil && strings.HasPrefix(*text, "/") {
		real = nil
	}
	for len(parts) > 0 {
		name := parts[0]
		parts = parts[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			if len(real) > 0 {
				real = real[:len(real)-1]
			}
			continue
		}
		target, err := c.linkAt(append(slices.Clone(real), name))
		if err != nil {
			return nil, err
		}
		if target == "" {
			if real = append(real, name); len(real) > maxDepth {
				return nil, fmt.Errorf("deeper than %d directories: %w", maxDepth, errdefs.ErrInvalidArgument)
			}
			continue
		}
		if links++; links > maxSymlinks {
			return nil, fmt.Errorf("more than %d symbolic links: %w", maxSymlinks, errdefs.ErrInvalidArgument)
		}
		if strings.HasPrefix(target, "/") {
			real = nil
		}
		parts = append(strings.Split(target, "/"), parts...)
	}
	return real, nil
}

// linkAt returns the text of the symbolic link at a real place, "" if there
// is something else or nothing.
func (c *completer) linkAt(place []string) (string, error) {
	if err := c.bookSteps(len(place)); err != nil {
		return "", err
	}
	n := c.root
	for _, name := range place {
		next := n.child(name)
		if next == nil {
			if n.cutOff() {
				return "", nil
			}
			n = nil
			break
		}
		n = next
	}
	if n != nil && (n.listed || !n.isDir()) {
		return n.target, nil // the layer has its own
	}
	fd, st, err := lookup(c.lower, strings.Join(place, "/"))
	if errors.Is(err, unix.ENOENT) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", nil
	}
	return readlink(fd)
}
