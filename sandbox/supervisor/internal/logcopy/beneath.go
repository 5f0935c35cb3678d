package logcopy

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func openBeneath(dir, path string) (int, error) {
	parent, name, err := openParent(dir, path, true)
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent)
	// O_NONBLOCK for a FIFO that somebody put there; it says nothing to a regular file.
	return openat2(parent, name, unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT|unix.O_NONBLOCK|unix.O_NOCTTY, 0o640)
}

// openParent opens the directory of path beneath dir, and makes it if need be.
func openParent(dir, path string, create bool) (fd int, name string, err error) {
	if !filepath.IsLocal(path) || filepath.Clean(path) != path || path == "." {
		return -1, "", fmt.Errorf("path must be relative, clean and without \"..\": %w", errdefs.ErrInvalidArgument)
	}
	if create {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return -1, "", err
		}
	}
	fd, err = unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, "", err
	}
	for {
		part, rest, more := strings.Cut(path, "/")
		if !more {
			// not O_PATH: Readdirnames needs it
			open, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			_ = unix.Close(fd)
			return open, part, err
		}
		if create {
			if err := unix.Mkdirat(fd, part, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
				_ = unix.Close(fd)
				return -1, "", err
			}
		}
		next, err := openat2(fd, part, unix.O_PATH|unix.O_DIRECTORY, 0)
		_ = unix.Close(fd)
		if err != nil {
			return -1, "", err
		}
		fd, path = next, rest
	}
}

// openat2 follows no symbolic link, neither in name nor at its end.
func openat2(dir int, name string, flags uint64, mode uint64) (int, error) {
	for {
		fd, err := unix.Openat2(dir, name, &unix.OpenHow{
			Flags: flags | unix.O_CLOEXEC, Mode: mode,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
		})
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) { // a rename raced with it
			continue
		}
		return fd, err
	}
}
