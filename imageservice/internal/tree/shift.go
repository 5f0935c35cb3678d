package tree

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Shift gives every file of the tree at path, itself not included, the owner
// that own makes of the present one. Set-id bits and file capabilities stay,
// the latter for the root of the user namespace that own leads into. Nobody
// else may change the tree meanwhile.
func Shift(ctx context.Context, path string, own func(uid, gid uint32) (uint32, uint32)) error {
	root, err := os.OpenFile(path, openDir, 0)
	if err != nil {
		return err
	}
	defer root.Close()
	s := shifter{ctx: ctx, own: own}
	if err := s.walk(root); err != nil {
		return fmt.Errorf("changing owners in %s: %w", path, err)
	}
	return nil
}

type shifter struct {
	ctx context.Context
	own func(uid, gid uint32) (uint32, uint32)
}

// walk holds a descriptor for each level: an image has at most 2048.
func (s *shifter) walk(dir *os.File) error {
	names, err := dir.Readdirnames(-1) // at once, for files are being replaced
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	for _, name := range names {
		if err := s.ctx.Err(); err != nil {
			return context.Cause(s.ctx)
		}
		if err := s.entry(int(dir.Fd()), name); err != nil {
			return fmt.Errorf("%q: %w", name, err)
		}
	}
	return nil
}

func (s *shifter) entry(fd int, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	uid, gid := s.own(st.Uid, st.Gid)
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return unix.Fchownat(fd, name, int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW)
	}
	flags := uint64(unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC)
	f, err := openIn(fd, name, flags)
	if err != nil {
		return err
	}
	defer f.Close()
	if kind == unix.S_IFDIR {
		if err := s.walk(f); err != nil {
			return err
		}
	}
	return s.regular(fd, name, &st, uid, gid)
}

// regular changes the owner of a file or directory. That drops what gives
// rights to those who execute it, which is put back afterwards.
func (s *shifter) regular(fd int, name string, st *unix.Stat_t, uid, gid uint32) error {
	path := fmt.Sprintf("/proc/self/fd/%d/%s", fd, name)
	var caps [64]byte
	n, err := unix.Lgetxattr(path, capability, caps[:])
	if err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("reading %s: %w", capability, err)
	}
	if err := unix.Fchownat(fd, name, int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 {
		if err := unix.Fchmodat(fd, name, st.Mode&0o7777, 0); err != nil {
			return err
		}
	}
	if err != nil { // none
		return nil
	}
	root, _ := s.own(0, 0)
	if err := unix.Lsetxattr(path, capability, capsFor(root, caps[:n]), 0); err != nil {
		return fmt.Errorf("setting %s: %w", capability, err)
	}
	return nil
}

const (
	capability    = "security.capability"
	capsRevision2 = 0x02000000
	capsRevision3 = 0x03000000
	capsSize2     = 20
)

// capsFor makes file capabilities of the host's root (struct vfs_cap_data of
// linux/capability.h) those of the root of a user namespace (vfs_ns_cap_data).
func capsFor(root uint32, caps []byte) []byte {
	if len(caps) != capsSize2 {
		return caps
	}
	magic := binary.LittleEndian.Uint32(caps)
	if magic&^0xff != capsRevision2 {
		return caps
	}
	out := binary.LittleEndian.AppendUint32(nil, capsRevision3|magic&0xff)
	out = append(out, caps[4:]...)
	return binary.LittleEndian.AppendUint32(out, root)
}
