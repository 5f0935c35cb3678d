package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// TerminalSize is the size of a terminal in cells. It is an alias, so that
// packages that may not import each other share the type.
type TerminalSize = struct{ Width, Height uint16 }

// Streams are the client's ends of a session in a container; nil is one that
// the client does not want. Whoever makes them unblocks what waits in them
// once the session has returned.
type Streams struct {
	Stdin          io.Reader           // io.EOF is the client's half-close; another error, that it has gone
	Stdout, Stderr io.Writer           // a terminal has no Stderr
	Resize         <-chan TerminalSize // the latest size counts; closed at the session's end
}

const (
	copyBuffer = 32 << 10
	// terminalBuffer is more than the kernel keeps between a terminal's two ends (tty_buffer.c, n_tty.c).
	terminalBuffer = 128 << 10
)

// feed copies the client's input to w, until the client's end, where it calls
// atEOF, or until the Read in which w is closed. What is not taken is dropped:
// on a connection that all streams share it would stand in the others' way.
func feed(w *os.File, from io.Reader, gone context.CancelCauseFunc, atEOF func()) {
	buf := make([]byte, copyBuffer)
	for refused := false; ; {
		n, err := from.Read(buf)
		if n > 0 && !refused {
			_, werr := w.Write(buf[:n])
			if errors.Is(werr, os.ErrClosed) {
				return
			}
			refused = werr != nil
		}
		switch {
		case err == nil:
			continue
		case errors.Is(err, io.EOF):
			atEOF()
		default:
			gone(fmt.Errorf("reading the client's input: %w", err))
		}
		return
	}
}

// output copies what a process writes, from a pipe or a terminal, to the client.
type output struct {
	from *os.File
	to   io.Writer
	done chan struct{}
	err  error // of the client's stream; guarded by done
}

// startOutput begins to copy, which drain ends, or the closing of from; gone
// is told when the client takes no more.
func startOutput(from *os.File, to io.Writer, gone context.CancelCauseFunc) *output {
	o := &output{from: from, to: to, done: make(chan struct{})}
	go func() {
		defer close(o.done)
		if o.err = o.run(); o.err != nil {
			gone(o.err)
		}
	}()
	return o
}

// drain is called when the process has ended. It returns when all that the
// process has written has been taken, however slow the client, and what a child
// of it has in the next moment; or with ctx's cause.
func drain(ctx context.Context, outputs []*output) error {
	for _, o := range outputs { // all in the same moment
		_ = o.from.SetReadDeadline(time.Unix(1, 0)) // which run takes for the word that the process has ended
	}
	for _, o := range outputs {
		select {
		case <-o.done:
			if o.err != nil {
				return o.err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

func (o *output) run() error {
	buf := make([]byte, copyBuffer)
	if ended, err := o.copy(buf, math.MaxInt, 0); err != nil || !ended {
		return err
	}
	// What is there now, from now on in nobody's hands but ours. A terminal
	// does not tell how much it is, but ends by itself with its session's leader.
	_ = o.from.SetReadDeadline(time.Time{})
	present, err := unread(o.from)
	if err != nil {
		return nil // closed
	}
	wait := time.Duration(0)
	if present < 0 {
		present, wait = terminalBuffer, execDrain
	}
	if _, err := o.copy(buf, present, wait); err != nil {
		return err
	}
	_ = o.from.SetReadDeadline(time.Now().Add(execDrain))
	_, err = o.copy(buf, math.MaxInt, 0)
	return err
}

// copy copies up to n bytes. Each read waits for wait if that is not 0. It
// returns whether a deadline ended it; other errors of reading are the end of
// what there is (a terminal's is EIO). The error is the client's.
func (o *output) copy(buf []byte, n int, wait time.Duration) (deadline bool, err error) {
	for n > 0 {
		if wait > 0 {
			_ = o.from.SetReadDeadline(time.Now().Add(wait))
		}
		got, rerr := o.from.Read(buf[:min(n, len(buf))])
		n -= got
		if got > 0 {
			if _, err := o.to.Write(buf[:got]); err != nil {
				return false, fmt.Errorf("writing to the client: %w", err)
			}
		}
		if rerr != nil {
			return errors.Is(rerr, os.ErrDeadlineExceeded), nil
		}
	}
	return false, nil
}

// unread is how many bytes lie in a pipe, or -1 for what is no pipe.
func unread(f *os.File) (n int, err error) {
	cerr := control(f, func(fd int) {
		if _, err = unix.FcntlInt(uintptr(fd), unix.F_GETPIPE_SZ, 0); err != nil {
			n, err = -1, nil
			return
		}
		n, err = unix.IoctlGetInt(fd, unix.TIOCINQ)
	})
	return n, errors.Join(cerr, err)
}

// resizer sets the sizes of a terminal that its client tells, also those that
// came before the terminal was there.
type resizer struct {
	terminal chan *os.File // takes the master, once
	stopped  chan struct{}
	done     sync.WaitGroup
}

// startResizer begins with the size that is known; call stop.
func startResizer(sizes <-chan TerminalSize, size TerminalSize) *resizer {
	r := &resizer{terminal: make(chan *os.File, 1), stopped: make(chan struct{})}
	r.done.Go(func() { r.run(sizes, size) })
	return r
}

func (r *resizer) stop() {
	close(r.stopped)
	r.done.Wait()
}

func (r *resizer) run(sizes <-chan TerminalSize, size TerminalSize) {
	var terminal *os.File
	for {
		select {
		case next, ok := <-sizes:
			switch {
			case !ok:
				sizes = nil
				continue
			case next.Width == 0 || next.Height == 0 || next == size:
				continue
			}
			size = next
		case terminal = <-r.terminal:
		case <-r.stopped:
			return
		}
		if terminal != nil && size != (TerminalSize{}) {
			setSize(terminal, size)
		}
	}
}

// awaitSize is the first size that comes, the zero one if none comes soon.
func awaitSize(ctx context.Context, sizes <-chan TerminalSize) TerminalSize {
	if sizes == nil {
		return TerminalSize{}
	}
	soon := time.NewTimer(sizeWait)
	defer soon.Stop()
	for {
		select {
		case size, ok := <-sizes:
			if !ok || size.Width > 0 && size.Height > 0 {
				return size
			}
		case <-soon.C:
			return TerminalSize{}
		case <-ctx.Done():
			return TerminalSize{}
		}
	}
}

// setSize sets a terminal's size; the kernel tells the foreground processes.
// A terminal that has gone has no size.
func setSize(terminal *os.File, size TerminalSize) {
	_ = control(terminal, func(fd int) {
		_ = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: size.Height, Col: size.Width})
	})
}

// control calls f with the descriptor, which stays open and non-blocking meanwhile, unlike with File.Fd.
func control(file *os.File, f func(fd int)) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(func(fd uintptr) { f(int(fd)) })
}
