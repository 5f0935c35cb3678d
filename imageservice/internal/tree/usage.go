package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// Usage adds up the disk space in bytes and the inodes of the tree at path,
// path itself included. A file with several links in the tree counts once.
// Files that vanish meanwhile are left out. No link is followed, and nothing
// is counted that is mounted below.
func Usage(ctx context.Context, path string) (bytes, inodes uint64, err error) {
	root, err := os.OpenFile(path, openDir, 0)
	if err != nil {
		return 0, 0, err
	}
	defer root.Close()
	if bytes, inodes, err = usage(ctx, root); err != nil {
		return 0, 0, fmt.Errorf("measuring %s: %w", path, err)
	}
	return bytes, inodes, nil
}

// UsageAt is Usage of an open directory.
func UsageAt(ctx context.Context, dirfd int) (bytes, inodes uint64, err error) {
	root, err := openIn(dirfd, ".", openDir)
	if err != nil {
		return 0, 0, err
	}
	defer root.Close()
	return usage(ctx, root)
}

func usage(ctx context.Context, root *os.File) (bytes, inodes uint64, err error) {
	m := meter{ctx: ctx}
	var st unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &st); err != nil {
		return 0, 0, err
	}
	m.add(&st)
	if err := m.walk(root, 0); err != nil {
		return 0, 0, err
	}
	for len(m.deep) > 0 {
		last := m.deep[len(m.deep)-1]
		m.deep = m.deep[:len(m.deep)-1]
		fd, err := unix.OpenByHandleAt(int(root.Fd()), last, openDir)
		if err != nil {
			continue // it is gone
		}
		dir := os.NewFile(uintptr(fd), "")
		err = m.walk(dir, 0)
		dir.Close()
		if err != nil {
			return 0, 0, err
		}
	}
	return uint64(math.Round(m.bytes)), uint64(math.Round(m.inodes)), nil
}

// meter adds up. Each of n links of a file counts for an n-th of it, so that
// no memory is needed for those already seen: all links of what a container
// has written are in its tree. The sums are exact up to what no disk holds.
type meter struct {
	ctx           context.Context
	bytes, inodes float64
	// deep are directories that lie heldDirs levels below where a walk began.
	// They are opened again when those above are closed, so that however deep
	// a tree is, few descriptors are needed.
	deep []unix.FileHandle
}

func (m *meter) add(st *unix.Stat_t) {
	links := 1.0
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		links = max(1, float64(st.Nlink))
	}
	m.bytes += float64(st.Blocks*512) / links
	m.inodes += 1 / links
}

func (m *meter) walk(dir *os.File, depth int) error {
	for {
		if err := m.ctx.Err(); err != nil {
			return err
		}
		names, err := dir.Readdirnames(256)
		for _, name := range names {
			if err := m.entry(int(dir.Fd()), name, depth); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ENOENT) || (err == nil && len(names) == 0) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (m *meter) entry(fd int, name string, depth int) error {
	var st unix.Stat_t
	if unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT) != nil {
		return nil // it has vanished
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		m.add(&st)
		return nil
	}
	sub, err := openIn(fd, name, openDir)
	if err != nil {
		return nil // it has vanished, or something is mounted there
	}
	defer sub.Close()
	m.add(&st)
	if depth < heldDirs {
		return m.walk(sub, depth+1)
	}
	handle, _, err := unix.NameToHandleAt(int(sub.Fd()), "", unix.AT_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("%d levels deep: %w", depth, err)
	}
	m.deep = append(m.deep, handle)
	return nil
}
