package tree

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// heldDirs is how many levels are held open at a time. A directory deeper
// than that is first moved to the top, so that a tree of a million levels
// needs neither a million descriptors nor a deep stack.
const heldDirs = 64

const openDir = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC

// Remove deletes name in the directory dirfd with all that is below it. It
// does not follow links. Absent is nil.
func Remove(dirfd int, name string) error {
	err := unix.Unlinkat(dirfd, name, 0)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM):
		return fmt.Errorf("removing %q: %w", name, err)
	}
	top, err := unix.Openat(dirfd, name, openDir, 0)
	if err != nil {
		return fmt.Errorf("removing %q: %w", name, err)
	}
	defer unix.Close(top)
	r := remover{top: top}
	for {
		if err := r.empty(top, 0); err != nil {
			return fmt.Errorf("removing %q: %w", name, err)
		}
		err := unix.Unlinkat(dirfd, name, unix.AT_REMOVEDIR)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !r.moved {
			return fmt.Errorf("removing %q: %w", name, err)
		}
		r.moved = false // what was moved up is emptied in the next round
	}
}

type remover struct {
	top   int
	next  int
	moved bool
}

// empty deletes all entries of a directory, or moves those to the top that
// are too deep.
func (r *remover) empty(fd, depth int) error {
	// A second descriptor, since File would close the caller's.
	own, err := unix.Openat(fd, ".", openDir, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(own), "")
	defer f.Close()
	for {
		names, err := f.Readdirnames(256)
		for _, name := range names {
			if err := r.entry(fd, name, depth); err != nil {
				return err
			}
		}
		if err == io.EOF || errors.Is(err, unix.ENOENT) || (err == nil && len(names) == 0) {
			return nil // ENOENT: somebody else has removed the directory
		}
		if err != nil {
			return err
		}
	}
}

func (r *remover) entry(fd int, name string, depth int) error {
	err := unix.Unlinkat(fd, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return err
	}
	if depth >= heldDirs {
		return r.moveUp(fd, name)
	}
	sub, err := unix.Openat(fd, name, openDir, 0)
	if err != nil {
		return err
	}
	err = r.empty(sub, depth+1)
	unix.Close(sub)
	if err != nil {
		return err
	}
	err = unix.Unlinkat(fd, name, unix.AT_REMOVEDIR)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

func (r *remover) moveUp(fd int, name string) error {
	for {
		r.next++
		err := unix.Renameat2(fd, name, r.top, ".deep"+strconv.Itoa(r.next), unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		r.moved = r.moved || err == nil
		return err
	}
}
