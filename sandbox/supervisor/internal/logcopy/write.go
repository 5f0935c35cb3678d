package logcopy

import (
	"bytes"
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// refuses says why nothing is to be written now, nor formatted; nil if it is.
func (f *File) refuses(now time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.opening:
		return nil // write waits for it
	case f.out.fd < 0:
		return errClosed
	case f.fullAt > 0:
		var st unix.Stat_t
		if err := unix.Fstat(f.out.fd, &st); err != nil || st.Size >= f.fullAt {
			return errFull
		}
		f.fullAt = 0 // somebody has cut it, instead of reopening it
	case f.failing != nil && now.Before(f.retry):
		return f.failing
	}
	return nil
}

// write appends lines, which are of raw[a:b] of s, and returns how much of
// them, in whole lines, is in the log. The rest is not, for the reason of err.
func (f *File) write(s *slot, lines []byte, a, b int) (kept int, err error) {
	f.lock()
	defer f.unlock()
	f.settle()
	f.mu.Lock()
	out := f.out
	f.busy = out.fd
	f.mu.Unlock()
	if out.fd < 0 {
		return 0, errClosed
	}
	kept, size, err := f.append(out, s, lines, a, b)

	f.mu.Lock()
	f.busy = -1
	if f.out != out { // replaced meanwhile, as this took long
		f.mu.Unlock()
		_ = unix.Close(out.fd) // not under mu, for it may hang
		return kept, err
	}
	defer f.mu.Unlock()
	switch {
	case err == nil && f.failing != nil:
		f.failing = nil
		f.warn("Log is written again", nil)
	case errors.Is(err, errFull):
		f.fullAt = max(size, 1)
	case err != nil:
		f.retry = time.Now().Add(retryEvery)
	}
	return kept, err
}

// append writes lines and returns how much of them, in whole lines, the file
// has, and its size.
func (f *File) append(out output, s *slot, lines []byte, a, b int) (kept int, size int64, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(out.fd, &st); err != nil {
		return 0, 0, err
	}
	var full error
	if room := max(f.max-st.Size, 0); f.max > 0 && room < int64(len(lines)) {
		lines = lines[:bytes.LastIndexByte(lines[:room], '\n')+1]
		full = errFull
	}
	s.h.dev, s.h.ino, s.h.size = out.dev, out.ino, st.Size
	s.set(writing, a, b)
	for done := 0; done < len(lines); {
		n, err := unix.Write(out.fd, lines[done:])
		if n > 0 {
			done += n
		}
		if err == nil && n == 0 {
			err = unix.EIO
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			kept = bytes.LastIndexByte(lines[:done], '\n') + 1
			if kept < done { // no torn line
				_ = unix.Ftruncate(out.fd, st.Size+int64(kept))
			}
			return kept, 0, err
		}
	}
	return len(lines), st.Size + int64(len(lines)), full
}
