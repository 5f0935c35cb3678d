package tree

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Usage adds up the disk space in bytes and the inodes of the tree at path,
// path itself included. A file with several links counts once. Files that
// vanish meanwhile are left out. Levels beyond 512 are not counted: they
// would need a descriptor each.
func Usage(ctx context.Context, path string) (bytes, inodes uint64, err error) {
	fd, err := unix.Open(path, openDir, 0)
	if err != nil {
		return 0, 0, &os.PathError{Op: "open", Path: path, Err: err}
	}
	m := meter{ctx: ctx, linked: make(map[[2]uint64]struct{})}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return 0, 0, err
	}
	m.add(&st)
	if err := m.walk(fd, 0); err != nil {
		return 0, 0, err
	}
	return m.bytes, m.inodes, nil
}

const maxUsageDepth = 512

type meter struct {
	ctx           context.Context
	bytes, inodes uint64
	linked        map[[2]uint64]struct{}
}

func (m *meter) add(st *unix.Stat_t) {
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		key := [2]uint64{uint64(st.Dev), st.Ino}
		if _, seen := m.linked[key]; seen {
			return
		}
		m.linked[key] = struct{}{}
	}
	m.bytes += uint64(st.Blocks) * 512
	m.inodes++
}

// walk closes fd.
func (m *meter) walk(fd, depth int) error {
	f := os.NewFile(uintptr(fd), "")
	defer f.Close()
	for {
		if err := m.ctx.Err(); err != nil {
			return err
		}
		names, err := f.Readdirnames(256)
		for _, name := range names {
			var st unix.Stat_t
			if unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
				continue
			}
			m.add(&st)
			if st.Mode&unix.S_IFMT != unix.S_IFDIR || depth >= maxUsageDepth {
				continue
			}
			sub, err := unix.Openat(fd, name, openDir, 0)
			if err != nil {
				continue
			}
			if err := m.walk(sub, depth+1); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || (err == nil && len(names) == 0) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
