package archive

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// Layer writes the tar of a layer that lies in overlayfs' form beneath the
// directory root. The root itself is in it if listed.
//
// Nobody writes to root meanwhile. What it holds is some image's, though, so it
// is only reached through root, following no link.
func Layer(ctx context.Context, w io.Writer, root *os.File, listed bool) error {
	return newLayerWriter(ctx, w, root).all(listed)
}

// Changes writes, as a tar, what a container has written, which lies in
// overlayfs' form beneath the directory root, and returns the paths of what it
// has deleted. The container may go on writing: what vanishes meanwhile is left
// out, as are sockets, which a tar cannot have. A directory that it has put in
// the place of one of the image has the entry .wh..wh..opq, as in a layer.
func Changes(ctx context.Context, w io.Writer, root *os.File) (deleted []string, err error) {
	l := newLayerWriter(ctx, w, root)
	l.live = true
	err = l.all(false)
	return l.deleted, err
}

func newLayerWriter(ctx context.Context, w io.Writer, root *os.File) *layerWriter {
	return &layerWriter{ctx: ctx, tw: tar.NewWriter(w), root: int(root.Fd()), links: make(map[inode]string), buf: make([]byte, bufferSize)}
}

func (l *layerWriter) all(listed bool) error {
	if err := l.directory(".", listed); err != nil {
		return err
	}
	for len(l.pending) > 0 { // a stack, so that depth costs no stack
		last := l.pending[len(l.pending)-1]
		l.pending = l.pending[:len(l.pending)-1]
		if err := l.entry(last); err != nil {
			return err
		}
	}
	return l.tw.Close()
}

type inode struct{ dev, ino uint64 }

type layerWriter struct {
	ctx     context.Context
	tw      *tar.Writer
	root    int
	links   map[inode]string // first name of files that have several
	pending []string         // names to be written, the next one last
	buf     []byte

	live    bool     // somebody writes to root meanwhile
	deleted []string // if live, instead of whiteouts
}

// open opens a name beneath the root, whose directories are no links.
func (l *layerWriter) open(name string, flags uint64) (*os.File, error) {
	fd, err := unix.Openat2(l.root, name, &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// entry writes one name, and puts what a directory has on the stack.
func (l *layerWriter) entry(name string) error {
	if err := context.Cause(l.ctx); err != nil {
		return err
	}
	f, err := l.open(name, unix.O_PATH)
	if err != nil {
		return l.vanished(err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return &os.PathError{Op: "stat", Path: name, Err: err}
	}
	hdr := header(name, &st)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return l.directory(name, true)
	case unix.S_IFCHR:
		if st.Rdev == 0 && l.live {
			l.deleted = append(l.deleted, "/"+name)
			return nil
		}
		if st.Rdev == 0 {
			return l.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path.Join(path.Dir(name), whiteout+path.Base(name)), ModTime: time.Unix(0, 0)})
		}
		hdr.Typeflag = tar.TypeChar
	case unix.S_IFBLK:
		hdr.Typeflag = tar.TypeBlock
	case unix.S_IFIFO:
		hdr.Typeflag = tar.TypeFifo
	case unix.S_IFLNK, unix.S_IFREG:
	case unix.S_IFSOCK:
		if l.live {
			return nil
		}
		fallthrough
	default:
		return fmt.Errorf("%q in the layer is of a kind (mode %o) that no image has", name, st.Mode)
	}
	if st.Nlink > 1 {
		id := inode{uint64(st.Dev), st.Ino}
		if first, seen := l.links[id]; seen {
			return l.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: first, ModTime: hdr.ModTime, Format: tar.FormatPAX})
		}
		l.links[id] = name
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		return l.symlink(hdr, f)
	case unix.S_IFREG:
		return l.file(hdr)
	}
	hdr.Devmajor, hdr.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	return l.tw.WriteHeader(hdr)
}

// vanished is the error of opening something, nil if somebody may have taken it away.
func (l *layerWriter) vanished(err error) error {
	if l.live && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)) {
		return nil
	}
	return err
}

// header has what all kinds of files have.
func header(name string, st *unix.Stat_t) *tar.Header {
	return &tar.Header{
		Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()), Format: tar.FormatPAX,
	}
}

func (l *layerWriter) symlink(hdr *tar.Header, f *os.File) error {
	n, err := unix.Readlinkat(int(f.Fd()), "", l.buf)
	if err != nil {
		return &os.PathError{Op: "readlink", Path: hdr.Name, Err: err}
	}
	hdr.Typeflag, hdr.Linkname = tar.TypeSymlink, string(l.buf[:n])
	return l.tw.WriteHeader(hdr)
}

func (l *layerWriter) file(hdr *tar.Header) error {
	f, err := l.open(hdr.Name, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return l.vanished(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return l.vanished(&os.PathError{Op: "open", Path: hdr.Name, Err: unix.ENOENT})
	}
	hdr.Typeflag, hdr.Size = tar.TypeReg, info.Size()
	if hdr.PAXRecords, _, err = l.xattrs(f); err != nil {
		return err
	}
	if err := l.tw.WriteHeader(hdr); err != nil {
		return err
	}
	for left := hdr.Size; left > 0; {
		if err := context.Cause(l.ctx); err != nil {
			return err
		}
		n, err := io.ReadFull(f, l.buf[:min(left, int64(len(l.buf)))])
		if l.live && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)) { // it has become shorter
			all := int(min(left, int64(len(l.buf))))
			clear(l.buf[n:all])
			n, err = all, nil
		}
		if err != nil {
			return fmt.Errorf("reading %q: %w", hdr.Name, unexpected(err))
		}
		if _, err := l.tw.Write(l.buf[:n]); err != nil {
			return err
		}
		left -= int64(n)
	}
	return nil
}

// directory writes a directory if listed, and what makes it opaque.
func (l *layerWriter) directory(name string, listed bool) error {
	f, err := l.open(name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return l.vanished(err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return &os.PathError{Op: "stat", Path: name, Err: err}
	}
	records, isOpaque, err := l.xattrs(f)
	if err != nil {
		return err
	}
	if listed {
		hdr := header(name+"/", &st)
		hdr.Typeflag, hdr.PAXRecords = tar.TypeDir, records
		if err := l.tw.WriteHeader(hdr); err != nil {
			return err
		}
	}
	if isOpaque {
		if err := l.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path.Join(name, opaque), ModTime: time.Unix(0, 0)}); err != nil {
			return err
		}
	}
	names, err := f.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("reading directory %q: %w", name, err)
	}
	slices.Sort(names)
	for _, n := range slices.Backward(names) {
		l.pending = append(l.pending, path.Join(name, n))
	}
	return nil
}

// xattrs are the extended attributes that belong to an image, as PAX records,
// and whether overlayfs' own says that a directory is opaque.
func (l *layerWriter) xattrs(f *os.File) (records map[string]string, isOpaque bool, err error) {
	n, err := unix.Flistxattr(int(f.Fd()), l.buf) // which has room for XATTR_LIST_MAX
	if errors.Is(err, unix.ENOTSUP) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("extended attributes of %q: %w", f.Name(), err)
	}
	for name := range strings.SplitSeq(string(l.buf[:n]), "\x00") {
		keep := name == "security.capability" || strings.HasPrefix(name, "user.")
		if !keep && name != "trusted.overlay.opaque" {
			continue
		}
		n, err := unix.Fgetxattr(int(f.Fd()), name, l.buf)
		if err != nil {
			return nil, false, fmt.Errorf("extended attribute %q of %q: %w", name, f.Name(), err)
		}
		if !keep {
			isOpaque = string(l.buf[:n]) == "y"
			continue
		}
		if records == nil {
			records = make(map[string]string)
		}
		records["SCHILY.xattr."+name] = string(l.buf[:n])
	}
	return records, isOpaque, nil
}
