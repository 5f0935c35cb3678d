package logcopy

import (
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// Owe has the file first undo the write that left was in, if it was in one,
// before anything is written: whatever is behind that would be cut off with it.
// So all that is left of a container's streams is owed before the first is started.
func (f *File) Owe(left *Leftover) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if left != nil && !slices.Contains(f.owed, left) {
		f.owed = append(f.owed, left)
	}
}

// settle undoes what is owed; f is locked.
func (f *File) settle() {
	f.mu.Lock()
	owed := f.owed
	f.owed = nil
	f.mu.Unlock()
	for _, l := range owed {
		if err := f.recover(l.cut); err != nil {
			f.log.Warn("Log may have a torn line", "err", err)
		}
		l.cut.size = -1 // done, be it owed again
		_, a, b := l.slot.get()
		l.slot.set(filled, a, b) // at once: the next supervisor would cut off what is written from here on
	}
}

// recover cuts the file of a write that a predecessor could not finish back to
// what it was before. It may have been renamed since, for a rotation that
// was to be followed by a Reopen. f is locked.
func (f *File) recover(c cut) error {
	if f.out.fd < 0 || c.size < 0 {
		return nil
	}
	fd := f.out.fd
	if f.out.dev != c.dev || f.out.ino != c.ino {
		var err error
		if fd, err = f.find(c.ino); err != nil || fd < 0 {
			return err // removed: nothing to cut
		}
		defer unix.Close(fd)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("recovering log %s: %w", f.path, err)
	}
	if over := st.Size - c.size; over <= 0 || over > outSize || st.Dev != c.dev || st.Ino != c.ino {
		return nil
	}
	if err := unix.Ftruncate(fd, c.size); err != nil {
		return fmt.Errorf("recovering log %s: %w", f.path, err)
	}
	return nil
}

// find opens the file with the inode ino in the log's directory, -1 if there is none.
func (f *File) find(ino uint64) (int, error) {
	parent, _, err := openParent(f.dir, f.path, false)
	if err != nil {
		return -1, err
	}
	d := os.NewFile(uintptr(parent), f.dir)
	defer d.Close()
	names, err := d.Readdirnames(1000)
	if err != nil {
		return -1, fmt.Errorf("looking for the rotated log of %s: %w", f.path, err)
	}
	for _, name := range names {
		var st unix.Stat_t
		if unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Ino != ino || st.Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		return unix.Openat(parent, name, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	}
	return -1, nil
}
