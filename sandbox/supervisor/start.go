package supervisor

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/peer"
	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/wire"
)

const (
	startTimeout = 30 * time.Second
	scopeTimeout = 10 * time.Second // of a systemd that does not answer
	helloTimeout = 30 * time.Second // one that has just started takes its predecessor's containers over first
	// dialTries bounds how often a call starts the supervisor anew: it may end
	// by itself, being idle, just as the call arrives.
	dialTries = 5
)

// dial connects to the supervisor, starting it when none answers, and reads
// its hello; version is the newest that both speak.
func (c *Client) dial(ctx context.Context) (conn wire.Conn, version int, err error) {
	for range dialTries {
		if conn, version, err = c.dialOnce(ctx); err == nil {
			return conn, version, nil
		}
		if ctx.Err() != nil {
			return wire.Conn{}, 0, context.Cause(ctx)
		}
		if !errors.Is(err, errGone) {
			return wire.Conn{}, 0, err
		}
		if serr := c.start(ctx); errors.Is(serr, errGone) {
			err = serr // killed: another one may live
		} else if serr != nil {
			return wire.Conn{}, 0, serr
		}
	}
	return wire.Conn{}, 0, fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
}

var (
	// errGone says that no supervisor serves the socket.
	errGone         = errors.New("no supervisor answers")
	errClientClosed = fmt.Errorf("supervisor client is closed: %w", errdefs.ErrUnavailable)
)

func (c *Client) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

func (c *Client) dialOnce(ctx context.Context) (wire.Conn, int, error) {
	if c.isClosed() {
		return wire.Conn{}, 0, errClientClosed
	}
	uc, err := peer.Dial(ctx, c.cfg.Dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ECONNRESET) {
			return wire.Conn{}, 0, fmt.Errorf("%w: %w", errGone, err)
		}
		return wire.Conn{}, 0, err
	}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		_ = uc.Close()
		return wire.Conn{}, 0, errClientClosed
	}
	if c.conns[uc] = peerOf(uc); len(c.conns) == 1 {
		c.looking.Reset(lookEvery)
	}
	c.mu.Unlock()

	conn := wire.Conn{UnixConn: uc}
	stop := context.AfterFunc(ctx, func() { _ = uc.Close() })
	defer stop()
	var hello wire.Hello
	_ = uc.SetReadDeadline(time.Now().Add(helloTimeout))
	got, err := conn.Receive(&hello)
	closeAll(got)
	_ = uc.SetReadDeadline(time.Time{})
	switch {
	case errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, net.ErrClosed) && !c.isClosed(): // by ctx, or by look
		err = fmt.Errorf("%w: it ended just now", errGone)
	case err != nil:
		err = fmt.Errorf("reading the supervisor's hello: %w", err)
	case hello.MinVersion > wire.Version || hello.Version < wire.MinVersion:
		err = fmt.Errorf("supervisor (process %d) speaks protocol %d to %d, this daemon %d to %d: %w",
			hello.PID, hello.MinVersion, hello.Version, wire.MinVersion, wire.Version, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		c.forget(conn)
		return wire.Conn{}, 0, err
	}
	return conn, min(hello.Version, wire.Version), nil
}

// start starts the supervisor, unless another client is just doing so.
func (c *Client) start(ctx context.Context) error {
	if err := prepareDir(c.cfg.Dir); err != nil { // /run may have been swept
		return err
	}
	lock, err := os.OpenFile(filepath.Join(c.cfg.Dir, "start.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("starting the supervisor: %w", err)
	}
	if err := flock(ctx, lock); err != nil {
		_ = lock.Close()
		return fmt.Errorf("starting the supervisor: %w", err)
	}
	if conn, err := peer.Dial(ctx, c.cfg.Dir); err == nil {
		pid := peerOf(conn)
		_ = conn.Close()
		if !peer.Hung(pid) {
			return lock.Close() // another client was faster
		}
	}
	started := make(chan error, 1)
	go func() { // as a caller may have less time than that takes, and each next one
		defer lock.Close() // unlocks
		started <- c.spawn(context.WithoutCancel(ctx))
	}()
	select {
	case err := <-started:
		if err != nil {
			return fmt.Errorf("starting the supervisor %s: %w", c.cfg.Binary, err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("starting the supervisor: %w", context.Cause(ctx))
	}
}

// peerOf is the process at the other end, 0 if that is not known.
func peerOf(conn *net.UnixConn) int {
	cred, err := peer.Cred(conn)
	if err != nil {
		return 0
	}
	return int(cred.Pid)
}

// lookEvery is how often it is looked whether the supervisor hangs in its end.
const lookEvery = time.Second

// look ends the connections to a supervisor that was killed and cannot end, as
// the kernel does with those of one that can. It is called from time to time while there are any.
func (c *Client) look() {
	c.mu.Lock()
	hung := make(map[int]bool)
	for _, pid := range c.conns {
		hung[pid] = false
	}
	c.mu.Unlock()
	for pid := range hung {
		hung[pid] = pid > 0 && peer.Hung(pid)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn, pid := range c.conns {
		if hung[pid] {
			_ = conn.Close()
		}
	}
	if len(c.conns) > 0 && !c.closed {
		c.looking.Reset(lookEvery)
	}
}

func flock(ctx context.Context, f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("locking %s: %w", f.Name(), err)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// spawn starts the supervisor, in a scope if the configuration says so and
// systemd makes one: a supervisor in the daemon's own cgroup is better than none.
func (c *Client) spawn(ctx context.Context) error {
	log := io.Discard
	if c.cfg.LogFile != "" {
		f, err := os.OpenFile(c.cfg.LogFile, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
		if err != nil {
			return err
		}
		defer f.Close()
		log = f
	}
	argv := []string{c.cfg.Binary, "--dir", c.cfg.Dir, "--ready-fd", "3"}
	if c.cfg.Scope {
		err := c.execute(ctx, slices.Concat(inScope(), argv), scopeTimeout, log)
		if err == nil || ctx.Err() != nil || errors.Is(err, errGone) {
			return err
		}
		slog.New(slog.NewTextHandler(log, nil)).Warn("No scope for the supervisor, it starts in the daemon's cgroup", "err", err)
	}
	return c.execute(ctx, argv, startTimeout, log)
}

// inScope is the beginning of a command line that becomes the rest of it, in a
// scope of its own: what is done to the daemon's unit (systemctl kill, freeze,
// its memory limit) is then not done to the parent of all containers. The scope
// has no name that lasts, for OCI runtimes of a predecessor may still be in
// its scope, and no default dependencies, so that it is not stopped before the
// containers when the machine is: it ends with them.
func inScope() []string {
	return []string{"systemd-run", "--quiet", "--scope", "--collect", "--no-ask-password",
		"--unit=gantry-supervisor-" + strings.ToLower(rand.Text()[:8]), "--description=Gantry's parent of containers",
		"--property=DefaultDependencies=no", "--property=TasksMax=infinity", "--"}
}

// execute executes a command line that is or becomes the supervisor, and waits
// until it has said, through a pipe, that it serves; errGone: it was killed before. The goroutine that then
// waits for the process ends with it, not with the client: nobody else would
// take the process' exit.
func (c *Client) execute(ctx context.Context, argv []string, limit time.Duration, log io.Writer) error {
	ready, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	defer theirs.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if f, ok := log.(*os.File); ok { // of any other writer a pipe would be made, and be gone with this process
		cmd.Stderr = f
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	_ = theirs.Close()

	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Now()) })()
	said, err := io.ReadAll(io.LimitReader(ready, wire.MaxErrorText))
	switch {
	case err != nil && ctx.Err() != nil:
		_ = cmd.Process.Kill()
		return fmt.Errorf("it did not get ready: %w", context.Cause(ctx))
	case err != nil:
		return err
	case string(said) != "ready\n":
		text := strings.TrimSpace(string(said))
		if text == "" {
			return fmt.Errorf("%w (see %s)", endedAtOnce(ctx, ended), c.cfg.LogFile)
		}
		return fmt.Errorf("%s (see %s)", text, c.cfg.LogFile)
	}
	return nil
}

// endedAtOnce is the end of a supervisor that has said nothing: errGone if a signal's.
func endedAtOnce(ctx context.Context, ended <-chan error) error {
	var err error
	select {
	case err = <-ended:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signaled() {
		return fmt.Errorf("%w: the next one ended at once: %w", errGone, err)
	}
	return fmt.Errorf("it ended at once: %v", err)
}

func prepareDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the supervisor's directory: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("checking the supervisor's directory: %w", err)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !info.IsDir() || !ok || int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("supervisor directory %s is not a directory of user %d: remove it: %w", dir, os.Geteuid(), errdefs.ErrFailedPrecondition)
	}
	if info.Mode().Perm() != 0o700 {
		if err := os.Chmod(dir, 0o700); err != nil {
			return fmt.Errorf("protecting the supervisor's directory: %w", err)
		}
	}
	return nil
}
