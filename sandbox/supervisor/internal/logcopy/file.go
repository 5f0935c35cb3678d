package logcopy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// warnEvery is how often dropped output of one file is warned of at most.
const warnEvery = 10 * time.Second

// File is the log file of one container, shared by its streams. It is made by
// [OpenFile] and closed by Close, after its copiers.
type File struct {
	dir, path string // path is beneath dir; "" discards
	log       *slog.Logger

	mu      sync.Mutex
	fd      int // -1 = discard
	dev     uint64
	ino     uint64
	failing bool
	dropped uint64 // bytes of output since the last warning
	lost    uint64 // bytes of output in all
	warned  time.Time
}

// OpenFile opens the log at path beneath dir, creating it (0640) and its
// parents (0755). No component of path may be a symbolic link, and the file
// must be a regular one without other names: whoever may write in dir could
// have linked a file of the host there. An empty path gives a File that discards.
func OpenFile(dir, path string, log *slog.Logger) (*File, error) {
	f := &File{dir: dir, path: path, log: log, fd: -1}
	if err := f.Reopen(); err != nil {
		return nil, err
	}
	return f, nil
}

// Reopen lets the log go on in whatever is at its path now, which is made if
// nothing is. Lines before and after are whole. On an error nothing changes
// and no file has been made.
func (f *File) Reopen() error {
	if f.path == "" {
		return nil
	}
	fd, err := openBeneath(f.dir, f.path)
	if err != nil {
		return fmt.Errorf("opening log %s beneath %s: %w", f.path, f.dir, err)
	}
	var st unix.Stat_t
	switch err = unix.Fstat(fd, &st); {
	case err != nil:
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		err = fmt.Errorf("not a regular file: %w", errdefs.ErrFailedPrecondition)
	case st.Nlink > 1:
		err = fmt.Errorf("the file has other names too, remove this one: %w", errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("opening log %s beneath %s: %w", f.path, f.dir, err)
	}
	f.mu.Lock()
	old := f.fd
	f.fd, f.dev, f.ino = fd, st.Dev, st.Ino
	f.mu.Unlock()
	if old >= 0 {
		_ = unix.Close(old)
	}
	return nil
}

// Close closes the file.
func (f *File) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fd >= 0 {
		_ = unix.Close(f.fd)
		f.fd = -1
	}
}

// Lost is how many bytes of output could not be written.
func (f *File) Lost() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lost
}

// write appends out, the lines of raw[a:a+used] of s, and notes in s that they
// are done. When it fails they are dropped and the log ends with a whole line.
func (f *File) write(s *slot, out []byte, a, used, b int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fd >= 0 {
		if err := f.append(s, out, a, b); err != nil {
			f.drop(used, err)
		} else if f.failing {
			f.failing = false
			f.warn("Log is written again", nil)
		}
	}
	s.set(filled, a+used, b)
}

func (f *File) append(s *slot, out []byte, a, b int) error {
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return err
	}
	s.h.dev, s.h.ino, s.h.size = f.dev, f.ino, st.Size
	s.set(writing, a, b)
	for done := 0; done < len(out); {
		n, err := unix.Write(f.fd, out[done:])
		if n > 0 {
			done += n
		}
		if err == nil && n == 0 {
			err = unix.EIO
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			if done > 0 { // no torn line
				_ = unix.Ftruncate(f.fd, st.Size)
			}
			return err
		}
	}
	return nil
}

func (f *File) drop(n int, err error) {
	f.failing = true
	f.dropped += uint64(n)
	f.lost += uint64(n)
	if time.Since(f.warned) >= warnEvery {
		f.warned = time.Now()
		f.warn("Log cannot be written, output is dropped", err)
	}
}

func (f *File) warn(message string, err error) {
	attrs := []slog.Attr{slog.String("log", filepath.Join(f.dir, f.path)), slog.Uint64("droppedBytes", f.dropped)}
	if err != nil {
		attrs = append(attrs, slog.Any("err", err))
	}
	f.dropped = 0
	f.log.LogAttrs(context.Background(), slog.LevelWarn, message, attrs...)
}

// recover cuts the file of a write that a predecessor could not finish back to
// what it was before. It may have been renamed since, for a rotation that
// was to be followed by a Reopen.
func (f *File) recover(c cut) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fd < 0 || c.size < 0 {
		return nil
	}
	fd := f.fd
	if f.dev != c.dev || f.ino != c.ino {
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

// Broken is a File that discards until it is reopened.
func Broken(dir, path string, log *slog.Logger) *File {
	return &File{dir: dir, path: path, log: log, fd: -1}
}
