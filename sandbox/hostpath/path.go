package hostpath

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Path is an open path of the host. Nothing that it does waits for a file system. Close it.
type Path struct {
	Name string // without symbolic links
	file *os.File
}

// Fd is the path's descriptor, opened with O_PATH; it is the Path's.
func (p *Path) Fd() int { return int(p.file.Fd()) }

// Close closes it.
func (p *Path) Close() error { return p.file.Close() }

// resolveCached is RESOLVE_CACHED of openat2(2), from Linux 5.12 on; before, every path is opened by a process.
const resolveCached = 0x20

// cached opens what the kernel can find without waiting.
func cached(path string) (*Path, error) {
	for {
		fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: resolveCached})
		if err == nil {
			return newPath(path, os.NewFile(uintptr(fd), path))
		}
		if !errors.Is(err, unix.EINTR) {
			return nil, &fs.PathError{Op: "openat2", Path: path, Err: err}
		}
	}
}

// newPath names an open file, which it closes on an error.
func newPath(asked string, f *os.File) (*Path, error) {
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	const deleted = " (deleted)" // proc_pid_fd(5)
	switch {
	case err != nil:
	case strings.HasSuffix(name, deleted) && !strings.HasSuffix(filepath.Clean(asked), deleted):
		err = &fs.PathError{Op: "open", Path: asked, Err: unix.ENOENT}
	case !filepath.IsAbs(name): // outside of our root, by a link of /proc
		err = fmt.Errorf("%s leads to %s, which has no path on the host", asked, name)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &Path{Name: name, file: f}, nil
}

// Propagation tells whether the mount that the path lies on is shared with, or
// a slave of, other mount namespaces (mount_namespaces(7)).
func (p *Path) Propagation() (shared, slave bool, err error) {
	id, err := p.mountID()
	if err != nil {
		return false, false, fmt.Errorf("finding the mount of %s: %w", p.Name, err)
	}
	f, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return false, false, fmt.Errorf("finding the mount of %s: %w", p.Name, err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		// proc_pid_mountinfo(5): id parent major:minor root target options [tag...] - ...
		fields := strings.Fields(s.Text())
		if len(fields) < 7 || fields[0] != id {
			continue
		}
		for _, tag := range fields[6:] {
			if tag == "-" {
				break
			}
			shared = shared || strings.HasPrefix(tag, "shared:")
			slave = slave || strings.HasPrefix(tag, "master:")
		}
		return shared, slave, nil
	}
	return false, false, fmt.Errorf("finding the mount of %s: mount %s is not in mountinfo", p.Name, id)
}

// mountID is the id of the path's mount, as mountinfo has it; statx(2) would ask its file system for more.
func (p *Path) mountID() (string, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/thread-self/fdinfo/%d", p.Fd()))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(data)) {
		if id, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			return strings.TrimSpace(id), nil
		}
	}
	return "", errors.New("the kernel does not tell (proc_pid_fdinfo(5))")
}
