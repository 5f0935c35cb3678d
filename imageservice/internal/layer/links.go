package layer

import (
	"errors"
	"fmt"
	"strings"

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
	if err := u.count(0); err != nil {
		return err
	}
	err = u.link(parent, name, parts)
	if errors.Is(err, errAbsent) {
		if err := u.remove(parent, name); err != nil {
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
	if dir == parent && base == name {
		return fmt.Errorf("hard link to itself: %w", errdefs.ErrInvalidArgument)
	}
	old := dir.child(base)
	if old != nil && old.isDir() {
		return fmt.Errorf("hard link to directory %q: %w", join(dir, base), errdefs.ErrInvalidArgument)
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
		return fmt.Errorf("hard link to %q, which the layer removes: %w", join(dir, base), errdefs.ErrInvalidArgument)
	}
	err = u.create(parent, name, func(to int) error { return unix.Linkat(fd, base, to, name, 0) })
	if err == nil && old != nil {
		u.add(parent, name, old.target)
	}
	return err
}
