package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/wire"
)

// stdio is both sides of a container's standard streams while it is started.
// The container gets its FIFOs read-write: so it holds a reader itself, and
// neither blocks nor gets SIGPIPE when this process dies. A stdin that is to
// end is a pipe: opening a FIFO without a writer, as /dev/stdin, waits for one.
type stdio struct {
	stdin, stdout, stderr *os.File // the container's side; nil: /dev/null
	in, out, err          *os.File // ours
	console               *consoleSocket
}

const stdinFIFO = "stdin"

// makeStdio makes what the request asks for in dir.
func (c *container) makeStdio() (_ *stdio, err error) {
	s := &stdio{}
	defer func() {
		if err != nil {
			s.closeAll()
		}
	}()
	if c.rec.Request.Terminal {
		s.console, err = listenConsole(c.dir)
		return s, err
	}
	for _, name := range []string{stdinFIFO, "stdout", "stderr"} {
		if name == stdinFIFO && !c.rec.Request.Stdin {
			continue
		}
		if name == stdinFIFO && c.rec.Request.StdinOnce {
			if err := c.makeStdinPipe(s); err != nil {
				return nil, fmt.Errorf("making stdin: %w", err)
			}
			continue
		}
		path := filepath.Join(c.dir, name)
		if err := unix.Mkfifo(path, 0o600); err != nil {
			return nil, fmt.Errorf("making %s: %w", path, err)
		}
		if req := &c.rec.Request; req.StdioUID != 0 {
			if err := os.Lchown(path, int(req.StdioUID), int(req.StdioGID)); err != nil {
				return nil, err
			}
		}
		// Read-write first: it never blocks, and lets the second open be of one side only.
		f, err := openFIFO(path, unix.O_RDWR, false)
		if err != nil {
			return nil, err
		}
		switch name {
		case stdinFIFO:
			s.stdin = f
			s.in, err = openFIFO(path, unix.O_WRONLY, true)
		case "stdout":
			s.stdout = f
			s.out, err = openFIFO(path, unix.O_RDONLY, true)
		case "stderr":
			s.stderr = f
			s.err, err = openFIFO(path, unix.O_RDONLY, true)
		}
		if err != nil {
			return nil, err
		}
	}
	return s, nil
}

// makeStdinPipe makes the stdin that ends, and notes in the record which it is.
func (c *container) makeStdinPipe(s *stdio) error {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	s.stdin = os.NewFile(uintptr(p[0]), "stdin")
	err := unix.SetNonblock(p[1], true) // for the poller, under which NewFile puts it then
	s.in = os.NewFile(uintptr(p[1]), "stdin")
	if req := &c.rec.Request; err == nil && req.StdioUID != 0 {
		err = unix.Fchown(p[0], int(req.StdioUID), int(req.StdioGID))
	}
	var st unix.Stat_t
	if err == nil {
		err = unix.Fstat(p[0], &st)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rec.StdinPipe = st.Ino
	return err
}

// maxLooks bounds how many descriptors of a container are looked at.
const maxLooks = 20_000

// openStdin opens the writing end of an adopted container's stdin. Of a pipe
// somebody in the container has the other end, or nobody can read it any more.
func (c *container) openStdin() (*os.File, error) {
	if c.rec.StdinPipe == 0 {
		return openFIFO(filepath.Join(c.dir, stdinFIFO), unix.O_WRONLY, true)
	}
	looks := 0
	pids, _ := cgroupPIDs(head(c.rec.Request.CgroupProcs, 1))
	for _, pid := range append([]int{c.rec.PID}, pids...) {
		dir, err := os.Open(fmt.Sprintf("/proc/%d/fd", pid))
		if notNow(err) {
			return nil, err
		}
		if err != nil {
			continue // it has ended
		}
		names, _ := dir.Readdirnames(maxLooks - looks + 1) // in order: 0 comes first
		for _, name := range names {
			if looks++; looks > maxLooks {
				break
			}
			if f, err := openPipe(int(dir.Fd()), name, c.rec.StdinPipe); err == nil || notNow(err) {
				_ = dir.Close()
				return f, err
			}
		}
		_ = dir.Close()
	}
	return nil, fmt.Errorf("stdin of container %s: nobody has it open: %w", c.id, fs.ErrNotExist)
}

// openPipe opens the pipe with the inode ino, if that is what name of dir is.
// Anything else is not opened: it is a hostile container's choice.
func openPipe(dir int, name string, ino uint64) (*os.File, error) {
	path, err := unix.Openat(dir, name, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(path)
	self := fmt.Sprintf("/proc/self/fd/%d", path)
	if target, err := os.Readlink(self); err != nil || target != fmt.Sprintf("pipe:[%d]", ino) {
		return nil, fs.ErrNotExist
	}
	fd, err := unix.Open(self, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "stdin"), nil
}

func openFIFO(path string, flags int, nonblock bool) (*os.File, error) {
	if nonblock {
		flags |= unix.O_NONBLOCK
	}
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil // puts a non-blocking one under the poller
}

// closeTheirs closes the container's side.
func (s *stdio) closeTheirs() {
	for _, f := range []*os.File{s.stdin, s.stdout, s.stderr} {
		if f != nil {
			_ = f.Close()
		}
	}
	s.stdin, s.stdout, s.stderr = nil, nil, nil
	if s.console != nil {
		s.console.close()
		s.console = nil
	}
}

func (s *stdio) closeAll() {
	s.closeTheirs()
	for _, f := range []*os.File{s.in, s.out, s.err} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// consoleSocket receives the master of a pseudo-terminal from an OCI runtime.
type consoleSocket struct {
	dir  *os.File
	name string
	l    *net.UnixListener
}

// listenConsole listens in dir, through a descriptor of it: its path may be
// longer than a socket's may be.
func listenConsole(dir string) (*consoleSocket, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("making a console socket: %w", err)
	}
	s := &consoleSocket{dir: d, name: fmt.Sprintf("console-%d", time.Now().UnixNano())}
	s.l, err = net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: s.path()})
	if err != nil {
		_ = d.Close()
		return nil, fmt.Errorf("making a console socket: %w", err)
	}
	s.l.SetUnlinkOnClose(false)
	return s, nil
}

// path is one that the runtime, another process, can use too.
func (s *consoleSocket) path() string {
	return fmt.Sprintf("/proc/%d/fd/%d/%s", os.Getpid(), s.dir.Fd(), s.name)
}

// receive returns the terminal that a runtime, which has ended, has sent.
func (s *consoleSocket) receive(ctx context.Context) (*os.File, error) {
	deadline := time.Now().Add(5 * time.Second)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	_ = s.l.SetDeadline(deadline)
	conn, err := s.l.AcceptUnix()
	if err != nil {
		return nil, fmt.Errorf("receiving the terminal from the OCI runtime: %w", err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(deadline)
	f, err := wire.ReceiveFile(conn)
	if err != nil {
		return nil, fmt.Errorf("receiving the terminal from the OCI runtime: %w", err)
	}
	defer f.Close()
	// A duplicate under a new os.File, which then goes under the poller.
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	if cerr := raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 3) }); cerr != nil {
		return nil, cerr
	}
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("taking the terminal: %w", err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "terminal"), nil
}

func (s *consoleSocket) close() {
	_ = s.l.Close()
	_ = unix.Unlinkat(int(s.dir.Fd()), s.name, 0)
	_ = s.dir.Close()
}
