package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/test/harness"
)

// crictl is a running crictl whose standard streams the test has: pipes, or a pseudo-terminal for all three.
type crictl struct {
	t        testing.TB
	cmd      *exec.Cmd
	in       *os.File // the terminal's master, or the pipe to stdin
	out, err *screen  // a terminal has no err
	done     chan error
}

// screen is what came out until now.
type screen struct {
	mu   sync.Mutex
	data bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.data.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.data.String()
}

// transports are those of crictl; the kubelet's own client speaks both too.
var transports = []string{"spdy", "websocket"}

// crictlCommand is a crictl that is not started.
func (n *node) crictlCommand(args ...string) *exec.Cmd {
	n.t.Helper()
	path, err := harness.Tool(n.context(), "crictl")
	if err != nil {
		n.t.Fatal(err)
	}
	return exec.Command(path, append([]string{"--runtime-endpoint", "unix://" + n.Socket, "--timeout", "30s"}, args...)...)
}

// crictl starts crictl in a pseudo-terminal of 80 to 24 cells, or with pipes.
func (n *node) crictl(terminal bool, args ...string) *crictl {
	n.t.Helper()
	c := &crictl{t: n.t, cmd: n.crictlCommand(args...), out: &screen{}, err: &screen{}, done: make(chan error, 1)}
	var theirs *os.File
	var err error
	if terminal {
		c.in, theirs = openTerminal(n.t)
		c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = theirs, theirs, theirs
		c.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	} else {
		if theirs, c.in, err = os.Pipe(); err != nil {
			n.t.Fatal(err)
		}
		c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = theirs, c.out, c.err
	}
	if err := c.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	_ = theirs.Close()
	var reading sync.WaitGroup
	if terminal {
		reading.Go(func() { _, _ = c.out.copy(c.in) })
	}
	go func() {
		err := c.cmd.Wait()
		reading.Wait() // to the terminal's hangup
		c.done <- err
	}()
	n.t.Cleanup(func() {
		_ = c.cmd.Process.Kill()
		_ = c.in.Close()
	})
	return c
}

func (s *screen) copy(from *os.File) (n int64, err error) {
	buf := make([]byte, 4096)
	for {
		got, err := from.Read(buf) // EIO when all have closed the other end
		_, _ = s.Write(buf[:got])
		n += int64(got)
		if err != nil {
			return n, err
		}
	}
}

// openTerminal makes a pseudo-terminal (pts(4)).
func openTerminal(t testing.TB) (master, slave *os.File) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	master = os.NewFile(uintptr(fd), "/dev/ptmx")
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80})
	}
	if err == nil {
		slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		t.Fatalf("making a terminal: %v", err)
	}
	return master, slave
}

// resize is what a terminal's window does.
func (c *crictl) resize(columns, rows uint16) {
	c.t.Helper()
	raw, err := c.in.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) {
			_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns})
		})
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *crictl) send(text string) {
	c.t.Helper()
	if _, err := c.in.WriteString(text); err != nil {
		c.t.Fatal(err)
	}
}

// sees waits until the text has come.
func (c *crictl) sees(s *screen, want string) {
	c.t.Helper()
	for limit := time.Now().Add(time.Minute); !strings.Contains(s.String(), want); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(limit) {
			c.t.Fatalf("crictl wrote %q, not %q; stderr %q", s.String(), want, c.err.String())
		}
	}
}

// wait waits for crictl's end and returns its exit code.
func (c *crictl) wait() int {
	c.t.Helper()
	select {
	case err := <-c.done:
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			c.t.Fatal(err)
		}
		return c.cmd.ProcessState.ExitCode()
	case <-time.After(time.Minute):
		c.t.Fatalf("crictl does not end; it wrote %q and %q", c.out.String(), c.err.String())
		return -1
	}
}
