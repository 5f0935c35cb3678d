package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/imageservice/internal/tree"
)

// unpacker writes the entries of one tar into a directory.
type unpacker struct {
	ctx     context.Context // of Unpack, then of Complete
	limits  Limits
	root    *node
	open    []*node // directories with a descriptor, oldest first; not root
	memory  int
	buf     []byte
	links   []hardLink // those whose target the layer does not have
	entries int64
	steps   int64
	logical int64  // file sizes as the tar states them
	bytes   uint64 // disk space
	inodes  uint64
	// replaced: files have been removed that bytes and inodes count.
	replaced bool
}

// hardLink is an entry that waits for the layers below.
type hardLink struct {
	name   string // of the link
	target string
}

func newUnpacker(ctx context.Context, rootFD int, limits Limits, buf []byte) *unpacker {
	return &unpacker{
		ctx:    ctx,
		limits: limits.orDefault(),
		root:   &node{fd: rootFD},
		buf:    buf,
		bytes:  4096,
		inodes: 1,
	}
}

// unpack reads the tar to its end mark and sets the times of directories.
func (u *unpacker) unpack(r *linkReader) error {
	tr := tar.NewReader(r)
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return r.blame("reading the layer's tar", err, errdefs.ErrInvalidArgument)
		}
		if err := u.entry(hdr, tr); err != nil {
			if r.broken() {
				return r.err
			}
			return fmt.Errorf("unpacking entry %q: %w", abbreviate(hdr.Name), classify(err))
		}
	}
	if u.dependent() {
		u.closeDirs()
		return nil // Complete finishes it
	}
	return u.finish()
}

// finish sets what later entries would have spoilt, and closes descriptors.
func (u *unpacker) finish() (err error) {
	defer u.closeDirs()
	if u.replaced {
		if u.bytes, u.inodes, err = tree.UsageAt(u.ctx, u.root.fd); err != nil {
			return err
		}
	}
	if u.root.listed {
		if err := unix.Fchmod(u.root.fd, u.root.mode); err != nil {
			return fmt.Errorf("setting mode %o: %w", u.root.mode, err)
		}
		if err := setTimes(u.root.fd, u.root.mtime); err != nil {
			return err
		}
	}
	stack := []*node{u.root}
	for len(stack) > 0 {
		n := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if err := u.canceled(); err != nil {
			return err
		}
		for _, c := range n.children {
			if !c.isDir() {
				continue
			}
			stack = append(stack, c)
			if !c.listed {
				continue
			}
			fd, err := u.dirFD(n)
			if err != nil {
				return err
			}
			if c.mode&unix.S_ISGID != 0 {
				if err := unix.Fchmodat(fd, c.name, c.mode, 0); err != nil {
					return fmt.Errorf("setting mode %o of directory %q: %w", c.mode, abbreviate(c.path()), err)
				}
			}
			if err := setTimesAt(fd, c.name, c.mtime); err != nil {
				return fmt.Errorf("setting the time of directory %q: %w", abbreviate(c.path()), err)
			}
		}
	}
	return nil
}

// count books what is about to be made.
func (u *unpacker) count(space uint64) {
	u.inodes++
	u.bytes += space
}

// split cleans a name from the tar and cuts it into components. No components
// mean the root.
func split(name string) ([]string, error) {
	if len(name) > maxName {
		return nil, fmt.Errorf("name longer than %d bytes: %w", maxName, errdefs.ErrInvalidArgument)
	}
	parts := make([]string, 0, 16)
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "", ".":
		case "..":
			return nil, fmt.Errorf("name with a %q component: %w", "..", errdefs.ErrInvalidArgument)
		default:
			if strings.IndexByte(part, 0) >= 0 {
				return nil, fmt.Errorf("name with a NUL byte: %w", errdefs.ErrInvalidArgument)
			}
			parts = append(parts, part)
		}
	}
	return parts, nil
}

const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"
)

func (u *unpacker) entry(hdr *tar.Header, r io.Reader) error {
	if err := u.bookEntry(); err != nil {
		return err
	}
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil // says nothing that a layer may say of all its entries
	}
	parts, err := split(hdr.Name)
	if err != nil {
		return err
	}
	meta, err := metadata(hdr)
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		if hdr.Typeflag != tar.TypeDir {
			return fmt.Errorf("the root is not a directory: %w", errdefs.ErrInvalidArgument)
		}
		return u.listDir(u.root, meta)
	}
	name := parts[len(parts)-1]
	if name != whiteoutOpaque && hasMeta(parts) {
		return nil
	}
	parent, err := u.dir(parts[:len(parts)-1], true)
	if err != nil {
		return err
	}
	if strings.HasPrefix(name, whiteoutPrefix) {
		return u.whiteout(parent, name)
	}
	switch hdr.Typeflag {
	case tar.TypeDir:
		return u.directory(parent, name, meta)
	case tar.TypeReg, tar.TypeGNUSparse:
		return u.file(parent, name, hdr, meta, r)
	case tar.TypeSymlink:
		return u.symlink(parent, name, hdr.Linkname, meta)
	case tar.TypeLink:
		return u.hardlink(parent, name, hdr.Linkname)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return u.device(parent, name, hdr, meta)
	}
	return fmt.Errorf("entry type %q: %w", hdr.Typeflag, errdefs.ErrInvalidArgument)
}

// hasMeta finds the bookkeeping of AUFS, which says nothing about the image.
func hasMeta(parts []string) bool {
	for _, p := range parts {
		if strings.HasPrefix(p, whiteoutMeta) {
			return true
		}
	}
	return false
}

// whiteout hides what the layers below have; what this layer has stays,
// wherever in the tar it stands.
func (u *unpacker) whiteout(parent *node, name string) error {
	if name == whiteoutOpaque {
		return u.makeOpaque(parent)
	}
	name = strings.TrimPrefix(name, whiteoutPrefix)
	if name == "" || name == "." || name == ".." || strings.HasPrefix(name, whiteoutPrefix) {
		return fmt.Errorf("whiteout of %q: %w", name, errdefs.ErrInvalidArgument)
	}
	if n := parent.child(name); n != nil {
		if n.isDir() {
			return u.makeOpaque(n)
		}
		return nil
	}
	u.count(0)
	fd, err := u.dirFD(parent)
	if err != nil {
		return err
	}
	err = unix.Mknodat(fd, name, unix.S_IFCHR, 0)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

func (u *unpacker) directory(parent *node, name string, meta meta) error {
	n := parent.child(name)
	if n != nil && n.isDir() {
		return u.listDir(n, meta)
	}
	n, err := u.mkdir(parent, name)
	if errors.Is(err, unix.ENOTDIR) {
		// It takes the place of a file, as which it hid a directory below.
		if err := u.remove(parent, name); err != nil {
			return err
		}
		if n, err = u.mkdir(parent, name); err != nil {
			return err
		}
		err = u.makeOpaque(n)
	}
	if err != nil {
		return err
	}
	return u.listDir(n, meta)
}

func (u *unpacker) listDir(n *node, meta meta) error {
	fd, err := u.dirFD(n)
	if err != nil {
		return err
	}
	n.listed, n.mtime, n.mode = true, meta.mtime, meta.mode // set at the end
	meta.mode &^= unix.S_ISGID                              // by which it would give its group to what is made in it
	return meta.apply(fd)
}

// create calls try until it does not find another file in its way.
func (u *unpacker) create(parent *node, name string, try func(fd int) error) error {
	fd, err := u.dirFD(parent)
	if err != nil {
		return err
	}
	err = try(fd)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err := u.remove(parent, name); err != nil {
		return err
	}
	if fd, err = u.dirFD(parent); err != nil {
		return err
	}
	return try(fd)
}

func (u *unpacker) file(parent *node, name string, hdr *tar.Header, meta meta, r io.Reader) error {
	if err := u.bookFile(hdr.Size); err != nil {
		return err
	}
	u.count(0)
	file := -1
	err := u.create(parent, name, func(fd int) (err error) {
		file, err = unix.Openat(fd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	defer unix.Close(file)
	if isSparse(hdr) {
		err = u.copySparse(file, hdr.Size, r)
	} else {
		err = u.copy(file, hdr.Size, r)
	}
	if err != nil {
		return err
	}
	if err := meta.apply(file); err != nil {
		return err
	}
	return setTimes(file, meta.mtime)
}

func (u *unpacker) symlink(parent *node, name, target string, meta meta) error {
	u.count(0)
	err := u.create(parent, name, func(fd int) error { return unix.Symlinkat(target, fd, name) })
	if err != nil {
		return err
	}
	if _, err := u.add(parent, name, target); err != nil {
		return err
	}
	return u.applyByName(parent, name, meta, false)
}

func (u *unpacker) device(parent *node, name string, hdr *tar.Header, meta meta) error {
	mode := uint32(unix.S_IFIFO)
	dev := 0
	if hdr.Typeflag != tar.TypeFifo {
		// The kernel's widths; 0:0 would be a whiteout.
		if hdr.Devmajor < 0 || hdr.Devmajor >= 1<<12 || hdr.Devminor < 0 || hdr.Devminor >= 1<<20 {
			return fmt.Errorf("device number %d:%d: %w", hdr.Devmajor, hdr.Devminor, errdefs.ErrInvalidArgument)
		}
		mode = unix.S_IFBLK
		if hdr.Typeflag == tar.TypeChar {
			mode = unix.S_IFCHR
			if hdr.Devmajor == 0 && hdr.Devminor == 0 {
				return fmt.Errorf("character device 0:0: %w", errdefs.ErrInvalidArgument)
			}
		}
		dev = int(unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor)))
	}
	u.count(0)
	err := u.create(parent, name, func(fd int) error { return unix.Mknodat(fd, name, mode, dev) })
	if err != nil {
		return err
	}
	return u.applyByName(parent, name, meta, true)
}
