package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("must run as root in CI: layers have owners, devices and trusted xattrs")
		}
		t.Skip("needs root: layers have owners, devices and trusted xattrs")
	}
}

type entry struct {
	tar.Header
	content string
}

func dir(name string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}}
}

func file(name, content string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, content: content}
}

func hard(name, target string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}}
}

func sym(name, target string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target}}
}

func tarOf(t testing.TB, entries []entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, e := range entries {
		e.Size = int64(len(e.content))
		check(t, tw.WriteHeader(&e.Header))
		_, err := io.WriteString(tw, e.content)
		check(t, err)
	}
	check(t, tw.Close())
	return buf.Bytes()
}

func source(blob, plain []byte) Source {
	return Source{
		Open:   func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(blob)), nil },
		Digest: digest.FromBytes(blob),
		Size:   int64(len(blob)),
		DiffID: digest.FromBytes(plain),
	}
}

func openDir(t testing.TB, path string) int {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	check(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func unpack(t testing.TB, root string, entries ...entry) (*Result, error) {
	t.Helper()
	body := tarOf(t, entries)
	return Unpack(t.Context(), source(body, body), openDir(t, root), Limits{})
}

// list describes a tree, one line for each file: type, mode, owner, name and
// what is particular.
func list(t testing.TB, root string) []string {
	t.Helper()
	var lines []string
	check(t, filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		line := fmt.Sprintf("%04o %d:%d %s", st.Mode&0o7777, st.Uid, st.Gid, printable(strings.TrimPrefix(path, root+"/")))
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			line += "/"
			buf := make([]byte, 8)
			if n, err := unix.Lgetxattr(path, "trusted.overlay.opaque", buf); err == nil {
				line += " opaque=" + string(buf[:n])
			}
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line = strings.TrimPrefix(line, "0777 ") + " -> " + target
		case unix.S_IFCHR, unix.S_IFBLK:
			line = fmt.Sprintf("device %d:%d %s", unix.Major(st.Rdev), unix.Minor(st.Rdev), line)
		case unix.S_IFIFO:
			line = "fifo " + line
		default:
			if st.Size > 1<<20 {
				line += fmt.Sprintf(" %d bytes in %d KiB", st.Size, st.Blocks/2)
			} else {
				content, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				line += fmt.Sprintf(" %q", content)
			}
			if names, err := xattrsOf(path); err != nil || names != "" {
				line += fmt.Sprintf(" xattrs=%s", names)
			}
			if st.Nlink > 1 {
				line += fmt.Sprintf(" links=%d", st.Nlink)
			}
		}
		lines = append(lines, line)
		return nil
	}))
	sort.Strings(lines)
	return lines
}

// printable keeps a name as it is unless it cannot be printed.
func printable(name string) string {
	if q := strconv.Quote(name); q[1:len(q)-1] != name {
		return q
	}
	return name
}

func xattrsOf(path string) (string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	buf := make([]byte, 4096)
	n, err := unix.Flistxattr(fd, buf)
	return strings.ReplaceAll(strings.TrimRight(string(buf[:max(n, 0)]), "\x00"), "\x00", ","), err
}

func openFiles(t testing.TB) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	check(t, err)
	return len(fds)
}
