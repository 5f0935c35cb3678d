package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Group is one cgroup, with its statistics files open. It is made by [Open],
// stays usable until Close, and answers errdefs.ErrNotFound once the cgroup has
// been removed. It is safe for concurrent use.
type Group struct {
	t    *tree
	path string

	mu     sync.RWMutex
	files  [statFiles]int // descriptors, guarded by mu; noFile where the kernel has no such file
	closed bool           // guarded by mu
}

const noFile = -1

// Open opens the cgroup. One that exists in no hierarchy is both
// errdefs.ErrNotFound and fs.ErrNotExist.
func Open(path string) (*Group, error) {
	t, err := host()
	if err != nil {
		return nil, err
	}
	return t.open(path)
}

func (t *tree) open(path string) (*Group, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	if !t.exists(path) {
		return nil, fmt.Errorf("cgroup %s: %w (%w)", path, errdefs.ErrNotFound, fs.ErrNotExist)
	}
	g := &Group{t: t, path: path}
	for i := range g.files {
		g.files[i] = noFile
	}
	for i := range g.files {
		n := t.statFile(i)
		file := t.file(n.controller, path, n.name)
		if n.name == "" || file == "" {
			continue
		}
		fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == unix.ENOENT {
			continue
		}
		if err != nil {
			return nil, errors.Join(&os.PathError{Op: "open", Path: file, Err: err}, g.Close())
		}
		g.files[i] = fd
	}
	return g, nil
}

// Close closes the files. A call that is under way ends first; later ones fail
// with os.ErrClosed. It may be called again.
func (g *Group) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil
	}
	g.closed = true
	var errs []error
	for _, fd := range g.files {
		if fd != noFile {
			errs = append(errs, os.NewSyscallError("close", unix.Close(fd)))
		}
	}
	return errors.Join(errs...)
}

// Exists reports whether a cgroup exists in any hierarchy.
func Exists(path string) bool {
	t, err := host()
	return err == nil && checkPath(path) == nil && t.exists(path)
}

func (t *tree) exists(path string) bool {
	for _, h := range t.hierarchies {
		if isDir(filepath.Join(h.root, path)) {
			return true
		}
	}
	return false
}

func isDir(path string) bool {
	st, err := os.Lstat(path)
	return err == nil && st.IsDir()
}

// gone turns the errors of a cgroup that was removed (ENODEV of an open file,
// ENOENT of a path) into errdefs.ErrNotFound.
func gone(err error) error {
	if errors.Is(err, unix.ENODEV) || errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	}
	return err
}
