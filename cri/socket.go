package cri

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	socketMode = 0o660
	dirMode    = 0o700
	// maxSocketPath is the kernel's bound (unix(7), sun_path) less the final NUL.
	maxSocketPath = 107
	dialTimeout   = 2 * time.Second
)

// listen makes the socket and its directory. At no moment is it open to more
// users than socketMode says. unlock is to be called when the listener is
// closed, which also removes the socket.
func listen(ctx context.Context, path string) (l net.Listener, unlock func(), err error) {
	if !filepath.IsAbs(path) {
		return nil, nil, fmt.Errorf("socket path %q: must be absolute: %w", path, errdefs.ErrInvalidArgument)
	}
	if len(path) > maxSocketPath {
		return nil, nil, fmt.Errorf("socket path %q has %d bytes, the kernel takes %d: choose a shorter one: %w", path, len(path), maxSocketPath, errdefs.ErrInvalidArgument)
	}
	if err := os.MkdirAll(filepath.Dir(path), dirMode); err != nil {
		return nil, nil, fmt.Errorf("making the directory of the CRI socket: %w", err)
	}
	release, err := lock(path)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			release()
		}
	}()
	if err := clearStale(ctx, path); err != nil {
		return nil, nil, err
	}
	// bind(2) gives the file the mode of the socket less the umask, so it begins
	// with too little rather than too much. The umask itself is the whole
	// process's and other goroutines make files.
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var chmodErr error
		err := c.Control(func(fd uintptr) { chmodErr = unix.Fchmod(int(fd), socketMode) })
		return errors.Join(err, chmodErr)
	}}
	l, err = lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, nil, fmt.Errorf("listening on the CRI socket: %w", err)
	}
	if err := os.Chmod(path, socketMode); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("setting the mode of the CRI socket: %w", err), l.Close())
	}
	return l, release, nil
}

// lock makes this the only instance at the socket's path. It holds until unlock or the end of the process.
func lock(socket string) (unlock func(), err error) {
	path := socket + ".lock"
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the CRI socket: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, anotherInstance(socket)
		}
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	return func() { _ = f.Close() }, nil
}

func anotherInstance(socket string) error {
	return fmt.Errorf("another instance serves %s: stop it, or give this one another --run or --socket: %w", socket, errdefs.ErrAlreadyExists)
}

// clearStale removes a socket that nobody serves.
func clearStale(ctx context.Context, path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking at the CRI socket: %w", err)
	}
	if st.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is there and is no socket (%v): remove it, or give another --socket: %w", path, st.Mode(), errdefs.ErrFailedPrecondition)
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		return errors.Join(anotherInstance(path), conn.Close())
	case !errors.Is(err, unix.ECONNREFUSED):
		// Its queue may be full, which is an instance that hangs.
		return fmt.Errorf("another process may serve %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("removing the stale CRI socket: %w", err)
	}
	return nil
}
