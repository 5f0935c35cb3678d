package hostile

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Canary makes the tree dir that hostile layers aim at: <dir>/file and others. Its parent is that of the layer's
// directory too, so that `../canary/file` means it from inside.
func Canary(dir string) error {
	when := time.Unix(1_000_000_000, 123)
	err := errors.Join(
		os.MkdirAll(filepath.Join(dir, "sub/deep"), 0o750),
		os.WriteFile(filepath.Join(dir, "file"), []byte("untouched"), 0o640),
		os.WriteFile(filepath.Join(dir, "sub/program"), []byte("#!/bin/true"), 0o755),
		os.Symlink("file", filepath.Join(dir, "link")),
		os.Link(filepath.Join(dir, "file"), filepath.Join(dir, "sub/hard")),
		os.Lchown(filepath.Join(dir, "file"), 12, 34),
		os.Chmod(filepath.Join(dir, "sub/program"), 0o755|fs.ModeSetuid),
		unix.Setxattr(filepath.Join(dir, "file"), "user.canary", []byte("sings"), 0),
	)
	return errors.Join(err, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Type() == fs.ModeSymlink {
			return err
		}
		return os.Chtimes(path, when, when)
	}))
}

// Snapshot describes a tree with everything that a layer might change in it, one line for each file.
func Snapshot(dir string) (string, error) {
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		names := make([]byte, 4096)
		n, err := unix.Llistxattr(path, names)
		if err != nil && !errors.Is(err, unix.ENOTSUP) {
			return err
		}
		fmt.Fprintf(&b, "%s %o %d:%d links=%d size=%d rdev=%d ino=%d mtime=%d", strings.TrimPrefix(path, dir), st.Mode, st.Uid, st.Gid, st.Nlink, st.Size, st.Rdev, st.Ino, st.Mtim.Nano())
		for name := range strings.SplitSeq(string(names[:max(n, 0)]), "\x00") {
			value := make([]byte, 64<<10)
			if n, err := unix.Lgetxattr(path, name, value); name != "" && err == nil {
				fmt.Fprintf(&b, " %s=%q", name, value[:n])
			}
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			body, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %x", sha256.Sum256(body))
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %q", target)
		}
		b.WriteByte('\n')
		return nil
	})
	return b.String(), err
}
