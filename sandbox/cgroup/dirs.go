package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Missing returns which cgroups [MkdirParents] would create, outermost first: a
// caller records them before they are made.
func Missing(path string) ([]string, error) {
	t, err := host()
	if err != nil {
		return nil, err
	}
	return t.missing(path)
}

func (t *tree) missing(path string) ([]string, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	var out []string
	for _, p := range lineage(path) {
		if !t.exists(p) {
			out = append(out, p)
		}
	}
	return out, nil
}

// lineage is a path and its ancestors below the root, outermost first.
func lineage(path string) []string {
	var out []string
	for i, r := range path + "/" {
		if r == '/' && i > 0 {
			out = append(out, path[:i])
		}
	}
	return out
}

// MkdirParents makes a cgroup and its ancestors in every hierarchy with a
// controller, ready for an OCI runtime to make children in, and returns those
// that existed in no hierarchy before, outermost first. It is idempotent.
// After an error what it made is removed again.
func MkdirParents(path string) (created []string, err error) {
	t, err := host()
	if err != nil {
		return nil, err
	}
	return t.mkdirParents(path)
}

func (t *tree) mkdirParents(path string) (created []string, err error) {
	created, err = t.missing(path)
	if err != nil {
		return nil, err
	}
	for _, h := range t.hierarchies {
		if len(h.controllers) == 0 || (t.version == V1 && (h.unified || strings.HasPrefix(h.controllers[0], "name="))) {
			continue
		}
		if err := t.mkdirIn(h, path); err != nil {
			errs := []error{fmt.Errorf("making cgroup %s: %w", path, err)}
			for i := len(created) - 1; i >= 0; i-- {
				errs = append(errs, t.removeEmpty(created[i]))
			}
			return nil, errors.Join(errs...)
		}
	}
	return created, nil
}

// mkdirIn makes a cgroup and its ancestors in one hierarchy.
func (t *tree) mkdirIn(h hierarchy, path string) error {
	cpuset := t.version == V1 && t.dir("cpuset") == h.root
	if t.version == V1 && usable(filepath.Join(h.root, path), cpuset) { // the kubelet has made it: so it is for most pods
		return nil
	}
	for _, p := range lineage(path) {
		dir := filepath.Join(h.root, p)
		if t.version == V2 {
			delegate(filepath.Dir(dir), h.controllers)
		}
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if cpuset {
			// A cpuset starts empty and takes no process until it has got some.
			if err := inheritCPUSet(dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// cpusetFiles must have something in them before a cpuset takes a process.
var cpusetFiles = []string{"cpuset.cpus", "cpuset.mems"}

// usable reports whether a version 1 cgroup exists and lacks nothing; a cpuset is never more than its parent's, so
// then those above it lack nothing either.
func usable(dir string, cpuset bool) bool {
	if !cpuset {
		return unix.Access(dir, unix.F_OK) == nil
	}
	for _, name := range cpusetFiles {
		have, err := readFile(filepath.Join(dir, name))
		if err != nil || have == "" {
			return false
		}
	}
	return true
}

// delegate lets the children of a version 2 cgroup use the controllers. Each is
// tried on its own, and those that cannot be (Documentation/admin-guide/
// cgroup-v2.rst, "Controlling Controllers") are left to the OCI runtime, which
// fails if it needs one.
func delegate(dir string, controllers []string) {
	for _, c := range controllers {
		_ = writeFile(filepath.Join(dir, "cgroup.subtree_control"), "+"+c)
	}
}

func inheritCPUSet(dir string) error {
	for _, name := range cpusetFiles {
		have, err := readFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if have != "" {
			continue
		}
		parent, err := readFile(filepath.Join(filepath.Dir(dir), name))
		if err != nil {
			return err
		}
		if err := writeFile(filepath.Join(dir, name), parent); err != nil {
			return err
		}
	}
	return nil
}

// readFile reads a short cgroup file without the spaces around. Package os would have the poller watch it, which
// costs more than the reading.
func readFile(path string) (string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	buf := make([]byte, 4096) // a page, as much as one read gives
	for {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return "", &os.PathError{Op: "read", Path: path, Err: err}
		}
		return strings.TrimSpace(string(buf[:n])), nil
	}
}

// writeFile writes an existing cgroup file in one write(2), as the kernel wants it.
func writeFile(path, value string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	for {
		_, err = unix.Write(fd, []byte(value))
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("writing %q to %s: %w", value, path, err)
	}
	return nil
}

// RemoveEmpty removes a cgroup from every hierarchy, unless it has processes or
// children in one of them: then it is left as it is, which is no error, and
// [Exists] tells. An absent cgroup is success. Ancestors are not touched; a
// caller with several goes from the deepest outwards.
func RemoveEmpty(path string) error {
	t, err := host()
	if err != nil {
		return err
	}
	return t.removeEmpty(path)
}

func (t *tree) removeEmpty(path string) error {
	if err := checkPath(path); err != nil {
		return err
	}
	// Checked in all first, so that a cgroup in use does not lose some of its hierarchies.
	for _, h := range t.hierarchies {
		used, err := inUse(filepath.Join(h.root, path))
		if err != nil {
			return fmt.Errorf("removing cgroup %s: %w", path, err)
		}
		if used {
			return nil
		}
	}
	for _, h := range t.hierarchies {
		if err := rmdir(filepath.Join(h.root, path)); err != nil {
			return fmt.Errorf("removing cgroup %s: %w", path, err)
		}
	}
	return nil
}

// rmdir removes a cgroup directory. One whose last process has just ended may
// be busy for moments more; one that has got a process or child meanwhile stays.
func rmdir(dir string) error {
	const tries = 8
	for i := range tries {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if used, useErr := inUse(dir); useErr == nil && used {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || i == tries-1 {
			return &os.PathError{Op: "rmdir", Path: dir, Err: err}
		}
		time.Sleep(time.Millisecond << i)
	}
	return nil
}

// inUse reports whether a cgroup directory has processes or children; an absent one has none.
func inUse(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		if e.IsDir() {
			return true, nil
		}
	}
	pids, err := readProcs(dir)
	return len(pids) > 0, err
}
