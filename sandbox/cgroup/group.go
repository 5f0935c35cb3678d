package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Group is one cgroup, with its statistics files open. It is made by [Open],
// stays usable until Close, and answers errdefs.ErrNotFound once the cgroup has
// been removed. It is safe for concurrent use.
type Group struct {
	t     *tree
	path  string
	files [statFiles]*os.File // nil where the kernel has no such file
}

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
	names := &statFilesV1
	if t.version == V2 {
		names = &statFilesV2
	}
	for i, n := range names {
		file := t.file(n.controller, path, n.name)
		if file == "" {
			continue
		}
		f, err := openRaw(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, errors.Join(err, g.Close())
		}
		g.files[i] = f
	}
	return g, nil
}

// openRaw opens a file for reading without giving it to Go's poller: cgroup
// files can be polled, and each event of theirs would wake it for nothing.
func openRaw(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// Close closes the files. A call that is under way ends first; later ones fail with os.ErrClosed.
func (g *Group) Close() error {
	var errs []error
	for _, f := range g.files {
		if f != nil {
			errs = append(errs, f.Close())
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
