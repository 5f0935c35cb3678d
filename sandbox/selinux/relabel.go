package selinux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	attribute = "security.selinux"
	// maxDepth bounds the directories that are open at a time.
	maxDepth = 512
)

// system are directories that the host cannot do without the labels of, nor
// what lies in them. of is for those below which volumes are.
var system = struct{ of, beneath []string }{
	of: []string{
		"/", "/home", "/media", "/mnt", "/opt", "/root", "/run", "/srv", "/tmp", "/var", "/var/cache", "/var/lib", "/var/lib/kubelet",
		"/var/lib/kubelet/pods", "/var/log", "/var/run", "/var/tmp",
	},
	beneath: []string{"/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/proc", "/sbin", "/sys", "/usr"},
}

// SetFile gives one file a label. A symbolic link is not followed.
func SetFile(path, label string) error {
	if err := unix.Lsetxattr(path, attribute, []byte(label), 0); err != nil {
		return &os.PathError{Op: "labelling", Path: path, Err: err}
	}
	return nil
}

// Relabel gives a file, or a directory and all beneath it, a label. Nothing is
// followed: no symbolic link, and no mount, for what is mounted there was not
// named. A file system without labels of files is left alone. The host's own
// directories are refused with errdefs.ErrInvalidArgument, by whatever path
// they come. path is absolute, with its links resolved.
func Relabel(ctx context.Context, path, label string) error {
	r := relabelling{ctx: ctx, label: []byte(label), system: map[inode]string{}}
	for _, dir := range system.beneath {
		if path == dir || strings.HasPrefix(path, dir+"/") {
			return refused(path, dir)
		}
	}
	for _, list := range [][]string{system.of, system.beneath} {
		for _, dir := range list {
			var st unix.Stat_t
			if unix.Stat(dir, &st) == nil {
				r.system[inode{st.Dev, st.Ino}] = dir
			}
		}
	}
	// What had no link in it when it was resolved must have none now.
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return &os.PathError{Op: "relabelling", Path: path, Err: err}
	}
	err = r.entry(fd, path, 0)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	return err
}

func refused(path, dir string) error {
	return fmt.Errorf("%s is the host's %s, whose labels are not changed: %w", path, dir, errdefs.ErrInvalidArgument)
}

type inode struct{ dev, ino uint64 }

type relabelling struct {
	ctx    context.Context
	label  []byte
	system map[inode]string
}

// entry labels the file that fd, which it closes, was opened of with O_PATH,
// after all that is in it.
func (r *relabelling) entry(fd int, path string, depth int) error {
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &os.PathError{Op: "relabelling", Path: path, Err: err}
	}
	if dir, ok := r.system[inode{st.Dev, st.Ino}]; ok {
		return refused(path, dir)
	}
	if r.ctx.Err() != nil {
		return fmt.Errorf("relabelling %s: %w", path, context.Cause(r.ctx))
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		if depth == maxDepth {
			return fmt.Errorf("relabelling %.256s: more than %d directories within one another: %w", path, maxDepth, errdefs.ErrFailedPrecondition)
		}
		if err := r.directory(fd, path, depth); err != nil {
			return err
		}
	}
	if err := r.set(fd); err != nil {
		return &os.PathError{Op: "relabelling", Path: path, Err: err}
	}
	return nil
}

// directory labels what is in a directory.
func (r *relabelling) directory(fd int, path string, depth int) error {
	readable, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "relabelling", Path: path, Err: err}
	}
	dir := os.NewFile(uintptr(readable), path)
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(1024)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("relabelling: %w", err)
		}
		for _, name := range names {
			child, err := unix.Openat2(fd, name, &unix.OpenHow{
				Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
				Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_MAGICLINKS,
			})
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EXDEV) { // deleted by now, or mounted there
				continue
			}
			below := filepath.Join(path, name)
			if err != nil {
				return &os.PathError{Op: "relabelling", Path: below, Err: err}
			}
			if err := r.entry(child, below, depth+1); err != nil {
				return err
			}
		}
	}
}

// set labels the file of a descriptor, a symbolic link too: the kernel leads to
// the file itself and no further. What has the label is not written to, so that
// a second container costs only the reading.
func (r *relabelling) set(fd int) error {
	file := fmt.Sprintf("/proc/self/fd/%d", fd)
	buf := make([]byte, len(r.label)+1)
	if n, err := unix.Getxattr(file, attribute, buf); err == nil && strings.TrimRight(string(buf[:n]), "\x00") == string(r.label) {
		return nil
	}
	return unix.Setxattr(file, attribute, r.label, 0)
}
