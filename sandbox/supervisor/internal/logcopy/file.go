package logcopy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// warnEvery is how often dropped output of one file is warned of at most.
	warnEvery = 10 * time.Second
	// retryEvery is how often a file that fails is written to again: a full
	// ext4 commits its journal at each try.
	retryEvery = 100 * time.Millisecond
)

// Why output is dropped, where the kernel does not say it.
var (
	errFull   = errors.New("it has its largest size, until it is rotated")
	errHangs  = errors.New("a write takes too long")
	errClosed = errors.New("it is not open")
)

// File is the log file of one container, shared by its streams. It is made by
// [OpenFile] and closed by Close, after its copiers.
type File struct {
	dir, path string // path is beneath dir; "" discards
	max       int64  // the size that it does not pass; 0 for none
	log       *slog.Logger

	// writing is a lock, held while the file is written to, and taken before
	// mu. A write may hang; who must not, takes it with a time limit.
	writing   chan struct{}
	reopening sync.Mutex

	mu      sync.Mutex // never held while waiting
	opening bool       // by OpenLater, which holds writing and reopening
	closed  bool
	out     output
	owed    []*Leftover // see Owe
	busy    int         // the descriptor that is written to, -1 for none; its writer closes it if it is not out's any more
	failing error
	retry   time.Time // of what fails
	fullAt  int64     // the size at which it was full; 0 if it is not
	dropped uint64    // bytes of output since the last warning
	lost    uint64    // bytes of output in all
	warned  time.Time
}

// output is an open file.
type output struct {
	fd       int // -1: none
	dev, ino uint64
}

// OpenFile opens the log at path beneath dir, creating it (0640) and its
// parents (0755). No component of path may be a symbolic link, and the file
// must be a regular one without other names: whoever may write in dir could
// have linked a file of the host there. An empty path gives a File that discards.
// With a max that is not 0, what would make the file larger is dropped.
func OpenFile(dir, path string, max int64, log *slog.Logger) (*File, error) {
	f := Broken(dir, path, max, log)
	if err := f.Reopen(); err != nil {
		return nil, err
	}
	return f, nil
}

// OpenLater is OpenFile for a log that a predecessor has written to, whose file
// system may hang: the File is there at once, and copiers that are started with
// it find a write under way until the file is open, which is when opened gets the
// error. It stays empty while after is not closed; nil: at once. Until then
// the pool cannot be frozen.
func (p *Pool) OpenLater(dir, path string, max int64, after <-chan struct{}, log *slog.Logger) (f *File, opened <-chan error) {
	f = Broken(dir, path, max, log)
	done := make(chan error, 1)
	if path == "" {
		done <- nil
		return f, done
	}
	f.opening = true
	f.lock()
	f.reopening.Lock()
	p.gate.Enter()
	go func() {
		defer p.gate.Leave()
		defer f.reopening.Unlock()
		defer f.unlock()
		if after != nil {
			<-after
		}
		out, err := open(dir, path)
		if err != nil {
			err = fmt.Errorf("opening log %s beneath %s: %w", path, dir, err)
			out.fd = -1
		}
		f.replace(out)
		done <- err
	}()
	return f, done
}

// Inherit is a File that goes on with an open descriptor of the log, which is
// its own from then on, be its path what it may by now; -1: there was none.
func Inherit(fd int, dir, path string, max int64, log *slog.Logger) (*File, error) {
	if fd < 0 {
		return Broken(dir, path, max, log), nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("log %s beneath %s: %w", path, dir, err)
	}
	f := Broken(dir, path, max, log)
	f.out = output{fd: fd, dev: st.Dev, ino: st.Ino}
	return f, nil
}

// FD is the descriptor of the log, -1 if none is open. It stays the file's.
func (f *File) FD() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.out.fd
}

// Broken is a File that drops all until it is reopened.
func Broken(dir, path string, max int64, log *slog.Logger) *File {
	return &File{dir: dir, path: path, max: max, log: log, writing: make(chan struct{}, 1), out: output{fd: -1}, busy: -1}
}

func (f *File) lock()   { f.writing <- struct{}{} }
func (f *File) unlock() { <-f.writing }

// Reopen lets the log go on in whatever is at its path now, which is made if
// nothing is. Lines before and after are whole, and all that is written after
// Reopen goes to the new file, but for a write that hangs. On an error nothing
// changes and no file has been made.
func (f *File) Reopen() error {
	if f.path == "" {
		return nil
	}
	if !f.reopening.TryLock() { // a file system that hangs: not one more thread for each who asks
		return fmt.Errorf("log %s beneath %s is being reopened: %w", f.path, f.dir, errdefs.ErrUnavailable)
	}
	defer f.reopening.Unlock()
	out, err := open(f.dir, f.path)
	if err != nil {
		return fmt.Errorf("opening log %s beneath %s: %w", f.path, f.dir, err)
	}
	limit := time.NewTimer(hangTime)
	defer limit.Stop()
	select {
	case f.writing <- struct{}{}:
		defer f.unlock()
	case <-limit.C:
	}
	f.replace(out)
	return nil
}

// open opens a log, as OpenFile says.
func open(dir, path string) (output, error) {
	fd, err := openBeneath(dir, path)
	if err != nil {
		return output{}, err
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
		return output{}, err
	}
	return output{fd: fd, dev: st.Dev, ino: st.Ino}, nil
}

// replace takes another file, and closes the old one unless it is written to;
// when the File has been closed meanwhile, the other one.
func (f *File) replace(out output) { f.swap(out, false) }

func (f *File) swap(out output, last bool) {
	f.mu.Lock()
	f.opening = false
	if !f.closed {
		f.out, out = out, f.out
		f.retry, f.fullAt = time.Time{}, 0
	}
	f.closed = f.closed || last
	busy := f.busy
	f.mu.Unlock()
	if out.fd >= 0 && out.fd != busy {
		_ = unix.Close(out.fd) // not under mu, for it may hang
	}
}

// Close closes the file, for good. A write that hangs is waited for by nobody.
func (f *File) Close() { f.swap(output{fd: -1}, true) }

// Lost is how many bytes of output could not be written.
func (f *File) Lost() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lost
}

// drop notes that n bytes are dropped because of err; without one they belong
// to a line of which some were dropped before.
func (f *File) drop(n int, err error) {
	if n == 0 || f.path == "" {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dropped += uint64(n)
	f.lost += uint64(n)
	if err == nil {
		return
	}
	f.failing = err
	if time.Since(f.warned) >= warnEvery {
		f.warned = time.Now()
		f.warn("Log cannot be written, output is dropped", err)
	}
}

// warn warns; mu is held.
func (f *File) warn(message string, err error) {
	attrs := []slog.Attr{slog.String("log", filepath.Join(f.dir, f.path)), slog.Uint64("droppedBytes", f.dropped)}
	if err != nil {
		attrs = append(attrs, slog.Any("err", err))
	}
	f.dropped = 0
	f.log.LogAttrs(context.Background(), slog.LevelWarn, message, attrs...)
}
