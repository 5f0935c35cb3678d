package cni

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// watch calls look once before it returns, and again after every change in dir and when the time has passed that look
// returned last, until stop is called: links to files elsewhere change unseen. A directory that is not there is waited
// for at its nearest parent that is. stop waits for the goroutine.
func watch(ctx context.Context, dir string, look func() time.Duration) (stop func() error, err error) {
	dir = filepath.Clean(dir)
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watching %s: %w", dir, err)
	}
	f := os.NewFile(uintptr(fd), "inotify") // non-blocking, so Close ends a Read
	w := &watcher{f: f, fd: fd, dir: dir}
	if err := w.arm(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	again := look()
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 16<<10)
		armed := true
		for {
			err := f.SetReadDeadline(time.Now().Add(again))
			if err == nil {
				_, err = f.Read(buf)
			}
			if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				if !errors.Is(err, os.ErrClosed) {
					klog.FromContext(ctx).Error(err, "Stopped watching the CNI configuration, restart to see changes", "path", dir)
				}
				return
			}
			// What happened does not matter: first the watch for later changes, then a look at what is there.
			err = w.arm()
			if err != nil && armed {
				klog.FromContext(ctx).Error(err, "Cannot watch the CNI configuration, changes are seen late", "path", dir)
			}
			armed = err == nil
			again = look()
		}
	}()
	return func() error {
		err := f.Close()
		<-done
		return err
	}, nil
}

type watcher struct {
	f    *os.File
	fd   int // f's; f.Fd would make it blocking
	dir  string
	path string // watched now: dir or a parent
	wd   int
}

// arm watches dir, or else its nearest existing parent.
func (w *watcher) arm() error {
	const mask = unix.IN_CLOSE_WRITE | unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO |
		unix.IN_ATTRIB | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF
	for path := w.dir; ; {
		wd, err := unix.InotifyAddWatch(w.fd, path, mask)
		if errors.Is(err, unix.ENOENT) && path != filepath.Dir(path) {
			path = filepath.Dir(path)
			continue
		}
		if err != nil {
			return fmt.Errorf("watching %s: %w", path, err)
		}
		if w.path != "" && wd != w.wd {
			_, _ = unix.InotifyRmWatch(w.fd, uint32(w.wd)) // fails when its directory is gone, as it should be then
		}
		w.path, w.wd = path, wd
		if path == w.dir || !exists(child(path, w.dir)) {
			return nil
		}
		path = w.dir // the child was made before its parent was watched
	}
}

// child is the entry of parent on the way to dir.
func child(parent, dir string) string {
	for filepath.Dir(dir) != parent {
		dir = filepath.Dir(dir)
	}
	return dir
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
