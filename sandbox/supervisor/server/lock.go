package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/peer"
)

// A supervisor that is killed while a log's file system hangs may not end
// before that answers: a thread waits in the kernel, and with it the lock, the
// socket and all descriptors stay. Its successor does not wait for that. It
// renames the lock, to lock.<pid of the predecessor>, makes a new one, and goes on.
// What the thread writes may still come then: as long as lock.<pid> is held,
// nobody touches a log that the predecessor was writing to.

const (
	// lockWait is how long a predecessor that was killed may take to be gone,
	// and hungWait how long before it is looked whether it hangs: by then what it
	// had to do in our own directory is done.
	lockWait, hungWait = 5 * time.Second, 2 * time.Second
	// hungEvery is how often it is looked whether one that hangs has ended.
	hungEvery = 100 * time.Millisecond
)

const lockName = "lock"

// acquire takes the lock of the supervisor's directory.
func acquire(dir string, log *slog.Logger) (*os.File, error) {
	path := filepath.Join(dir, lockName)
	for began := time.Now(); ; time.Sleep(2 * time.Millisecond) {
		f, err := tryLock(path, os.O_CREATE)
		if err == nil || !errors.Is(err, unix.EWOULDBLOCK) {
			return f, err
		}
		waited := time.Since(began)
		if waited > hungWait && stepOver(dir, log) {
			continue
		}
		if waited > lockWait {
			return nil, fmt.Errorf("%w: another supervisor runs here", err)
		}
	}
}

// tryLock locks a file; EWOULDBLOCK: somebody else has.
func tryLock(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|flags, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the supervisor's directory: %w", err)
	}
	if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
		mine, merr := f.Stat()
		now, nerr := os.Stat(path)
		if merr == nil && nerr == nil && os.SameFile(mine, now) {
			return f, nil
		}
		err = unix.EWOULDBLOCK // renamed meanwhile: this one is of no use
	}
	_ = f.Close()
	return nil, fmt.Errorf("locking %s: %w", path, err)
}

// stepOver renames the lock of a predecessor that hangs.
func stepOver(dir string, log *slog.Logger) bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	conn, err := peer.Dial(ctx, dir)
	if err != nil {
		return false
	}
	defer conn.Close()
	cred, err := peer.Cred(conn)
	if err != nil {
		return false
	}
	pid := int(cred.Pid)
	path := filepath.Join(dir, lockName)
	old := fmt.Sprintf("%s.%d", path, pid)
	if f, err := tryLock(old, 0); err == nil { // of another one that had its number
		_ = os.Remove(old)
		_ = f.Close()
	} else if !errors.Is(err, fs.ErrNotExist) { // another successor has been faster, and has the lock
		return false
	}
	if !peer.Hung(pid) {
		return false
	}
	if err := unix.Renameat2(unix.AT_FDCWD, path, unix.AT_FDCWD, old, unix.RENAME_NOREPLACE); err != nil {
		return false
	}
	log.Warn("Predecessor was killed and cannot end before a log's file system answers: taking over", "pid", pid)
	return true
}

// awaitHung returns what is closed when the predecessors have ended that hang;
// nil: none does.
func awaitHung(ctx context.Context, dir string) (<-chan struct{}, error) {
	locks, err := filepath.Glob(filepath.Join(dir, lockName+".*"))
	if err != nil {
		return nil, fmt.Errorf("looking for predecessors that hang: %w", err)
	}
	if locks = stillHeld(locks); len(locks) == 0 {
		return nil, nil
	}
	over := make(chan struct{})
	go func() {
		for len(locks) > 0 {
			select {
			case <-ctx.Done():
				return
			case <-time.After(hungEvery):
			}
			locks = stillHeld(locks)
		}
		close(over)
	}()
	return over, nil
}

// stillHeld removes those locks that nobody holds, and returns the others.
func stillHeld(locks []string) (held []string) {
	for _, path := range locks {
		f, err := tryLock(path, 0)
		if err == nil {
			_ = os.Remove(path)
			_ = f.Close()
		} else if !errors.Is(err, fs.ErrNotExist) {
			held = append(held, path)
		}
	}
	return held
}
