package filetree

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// File is all there is to know of one file, so that equal files are == each other.
type File struct {
	Type     string // as in ls -l: - d l c b p s
	Mode     string // octal, with setuid, setgid and sticky bits
	UID, GID uint32
	Size     int64 // of a regular file
	Content  string
	Target   string // of a symbolic link
	Device   string // major:minor
	Mtime    string // seconds.nanoseconds
	Xattrs   string
	Same     string // the first name, in order, of the same file; "" when it has one name
}

// Tree has the files by their path below the root, which is ".".
type Tree map[string]File

var types = map[uint32]string{unix.S_IFREG: "-", unix.S_IFDIR: "d", unix.S_IFLNK: "l", unix.S_IFCHR: "c", unix.S_IFBLK: "b",
	unix.S_IFIFO: "p", unix.S_IFSOCK: "s"}

// Read reads the whole tree at root.
func Read(root string) (Tree, error) {
	tree := Tree{}
	inodes := map[[2]uint64][]string{}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return &os.PathError{Op: "lstat", Path: path, Err: err}
		}
		if tree[name], err = file(path, &st); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			key := [2]uint64{st.Dev, st.Ino}
			inodes[key] = append(inodes[key], name)
		}
		return nil
	})
	for _, names := range inodes {
		if len(names) > 1 {
			for _, name := range names {
				f := tree[name]
				f.Same = slices.Min(names)
				tree[name] = f
			}
		}
	}
	return tree, err
}

func file(path string, st *unix.Stat_t) (f File, err error) {
	f = File{
		Type: types[st.Mode&unix.S_IFMT], Mode: fmt.Sprintf("%04o", st.Mode&0o7777), UID: st.Uid, GID: st.Gid,
		Mtime: fmt.Sprintf("%d.%09d", st.Mtim.Sec, st.Mtim.Nsec),
	}
	switch f.Type {
	case "-":
		f.Size = st.Size
		f.Content, err = content(path)
	case "l":
		f.Target, err = os.Readlink(path)
	case "c", "b":
		f.Device = fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	if err != nil {
		return f, err
	}
	f.Xattrs, err = xattrs(path)
	return f, err
}

func content(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}

func xattrs(path string) (string, error) {
	list := make([]byte, 64<<10) // XATTR_LIST_MAX
	n, err := unix.Llistxattr(path, list)
	if errors.Is(err, unix.ENOTSUP) || (err == nil && n == 0) {
		return "", nil
	}
	if err != nil {
		return "", &os.PathError{Op: "listxattr", Path: path, Err: err}
	}
	var all []string
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		value := make([]byte, 64<<10) // XATTR_SIZE_MAX
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return "", &os.PathError{Op: "getxattr " + name, Path: path, Err: err}
		}
		all = append(all, fmt.Sprintf("%s=%x", name, value[:n]))
	}
	slices.Sort(all)
	return strings.Join(all, " "), nil
}

// Diff describes, sorted by path, what differs between two trees.
func Diff(got, want Tree) []string {
	paths := maps.Clone(got)
	maps.Copy(paths, want)
	var lines []string
	for _, path := range slices.Sorted(maps.Keys(paths)) {
		g, inGot := got[path]
		w, inWant := want[path]
		switch {
		case !inGot:
			lines = append(lines, fmt.Sprintf("%q is missing: %+v", path, w))
		case !inWant:
			lines = append(lines, fmt.Sprintf("%q should not be: %+v", path, g))
		case g != w:
			lines = append(lines, fmt.Sprintf("%q:\n\tgot  %+v\n\twant %+v", path, g, w))
		}
	}
	return lines
}
