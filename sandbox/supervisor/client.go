package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/wire"
)

// Client makes calls to the node's supervisor. It is made by [Connect] and is
// safe for concurrent use. Each call is a connection of its own, so a call
// that hangs holds up no other, and closing the connection cancels the call.
type Client struct {
	cfg Config

	mu      sync.Mutex
	closed  bool
	conns   map[*net.UnixConn]int // with the process at the other end
	looking *time.Timer           // calls look
	held    map[string]held       // by container, see Hold
	outputs map[string][]int      // by container, see holdOutputs
}

// Connect returns a client of the supervisor in cfg.Dir. It adopts the running
// one, or starts it when none answers.
func Connect(ctx context.Context, cfg Config) (*Client, error) {
	if !filepath.IsAbs(cfg.Dir) || !filepath.IsAbs(cfg.Binary) {
		return nil, fmt.Errorf("supervisor directory %q and binary %q must be absolute paths: %w", cfg.Dir, cfg.Binary, errdefs.ErrInvalidArgument)
	}
	if err := prepareDir(cfg.Dir); err != nil {
		return nil, err
	}
	c := &Client{cfg: cfg, conns: make(map[*net.UnixConn]int), held: make(map[string]held), outputs: make(map[string][]int)}
	c.looking = time.AfterFunc(lookEvery, c.look)
	if err := c.again(ctx, "ping", struct{}{}, nil); err != nil {
		return nil, err
	}
	return c, nil
}

// Close ends every call that is under way, and the client. The supervisor
// lives on as long as it has containers.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.looking.Stop()
	for conn := range c.conns {
		_ = conn.Close()
	}
	for id, h := range c.held {
		_ = h.f.Close()
		delete(c.held, id)
	}
	for id, fds := range c.outputs {
		closeFDs(fds)
		delete(c.outputs, id)
	}
	return nil
}

// Run starts a container and returns the process id of its first process. The
// text of an error is the OCI runtime's own message. When it fails, or ctx
// ends first, all is undone, and a Run with the same ID that follows waits for
// that. errdefs.ErrAlreadyExists: the ID is in use.
func (c *Client) Run(ctx context.Context, req RunRequest) (pid int, err error) {
	var a RunAnswer
	held := false
	err = c.stream(ctx, "run", req, nil, func(_ wire.Conn, raw json.RawMessage, got []*os.File) (bool, error) {
		closeAll(got)
		c.holdOutputs(req.ID) // before the commit: there is no moment at which the container is and its output is not held
		held = true
		return false, json.Unmarshal(raw, &a)
	})
	if err != nil && held {
		c.letOutputsGo(req.ID)
	}
	return a.PID, err
}

// Kill sends sig to the container's first process, through a pidfd so that no
// other process is ever hit. With all it goes to every process of the
// container's cgroup too; and all with SIGKILL returns when the cgroup is
// empty. errdefs.ErrNotFound: unknown, or the first process has ended (what is
// left in the cgroup has got the signal nevertheless).
func (c *Client) Kill(ctx context.Context, id string, sig syscall.Signal, all bool) error {
	req := KillRequest{ID: id, Signal: sig, All: all}
	if sig == syscall.SIGKILL {
		return c.again(ctx, "kill", req, nil)
	}
	return c.call(ctx, "kill", req, nil)
}

// Delete kills what runs of the container, has the OCI runtime delete it and
// forgets it, its exit included. An unknown container is success.
func (c *Client) Delete(ctx context.Context, id string) error {
	err := c.again(ctx, "delete", IDRequest{ID: id}, nil)
	if err == nil {
		c.letOutputsGo(id)
	}
	return err
}

// Update has the OCI runtime change the limits of a running container to
// resources, an OCI specs.LinuxResources. After an error, some may have been
// changed. errdefs.ErrNotFound: unknown container;
// errdefs.ErrFailedPrecondition: it does not run.
func (c *Client) Update(ctx context.Context, id string, resources json.RawMessage) error {
	return c.call(ctx, "update", UpdateRequest{ID: id, Resources: resources}, nil)
}

// Checkpoint has the OCI runtime dump a running container, which runs on, with
// CRIU's images in one folder and its dump.log and stats-dump in another, both
// made by the caller. When ctx ends first the caller must remove the folders:
// that ends a dump under way. errdefs.ErrNotFound: unknown container;
// errdefs.ErrFailedPrecondition: it does not run, or the OCI runtime or CRIU
// cannot; errdefs.ErrNotImplemented: the supervisor that runs is an older one.
func (c *Client) Checkpoint(ctx context.Context, id, images, work string) error {
	return c.call(ctx, "checkpoint", CheckpointRequest{ID: id, Images: images, Work: work}, nil)
}

// ReopenLog lets the container's log go on in a new file at its path. On an
// error the log goes on in the old one and no file has been made.
// errdefs.ErrNotFound: unknown container.
func (c *Client) ReopenLog(ctx context.Context, id string) error {
	return c.call(ctx, "reopenLog", IDRequest{ID: id}, nil)
}

// List returns all containers that have been run and not been deleted.
func (c *Client) List(ctx context.Context) ([]State, error) {
	var a ListAnswer
	err := c.again(ctx, "list", struct{}{}, &a)
	return a.Containers, err
}

// execEndWait is how long an exec whose context has ended waits for its
// processes to be killed. The server lets an OCI runtime that has not yet
// started them go on for 5 s.
const execEndWait = 6 * time.Second

// Exec runs a process in a running container and returns its exit code, 128+n
// after signal n, when it has ended. When ctx ends first, every process of its
// session is killed, and has ended when Exec returns. errdefs.ErrNotFound: unknown container;
// errdefs.ErrFailedPrecondition: it does not run.
func (c *Client) Exec(ctx context.Context, req ExecRequest) (exitCode int, err error) {
	if req.Terminal && req.Console == nil {
		return 0, fmt.Errorf("exec in %s: a terminal needs a Console: %w", req.ID, errdefs.ErrInvalidArgument)
	}
	call := ExecCall{ExecRequest: req}
	var files []*os.File
	add := func(f *os.File) bool {
		if f == nil || req.Terminal {
			return false
		}
		setBlocking(f)
		files = append(files, f)
		return true
	}
	call.HasStdin, call.HasStdout, call.HasStderr = add(req.Stdin), add(req.Stdout), add(req.Stderr)

	err = c.stream(ctx, "exec", call, files, func(_ wire.Conn, body json.RawMessage, got []*os.File) (more bool, err error) {
		var a ExecAnswer
		if err := json.Unmarshal(body, &a); err != nil {
			return false, err
		}
		if a.Console && len(got) == 1 {
			req.Console(got[0])
			return true, nil
		}
		closeAll(got)
		exitCode = a.ExitCode
		return false, nil
	})
	return exitCode, err
}

// setBlocking clears O_NONBLOCK, which os.Pipe sets and the process would share
// and not expect. The caller has no use for this end but to close it.
func setBlocking(f *os.File) {
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.SetNonblock(int(fd), false) })
	}
}

// Watch calls f, one call at a time, for every exit that is recorded and then
// for each new one. It returns when ctx ends or the connection breaks, which a
// supervisor that is killed or replaced does. An exit may come twice over two
// Watches, never be missed before the container is deleted.
func (c *Client) Watch(ctx context.Context, f func(Exit)) error {
	return c.stream(ctx, "watch", struct{}{}, nil, func(_ wire.Conn, body json.RawMessage, got []*os.File) (bool, error) {
		closeAll(got)
		var e Exit
		if err := json.Unmarshal(body, &e); err != nil {
			return false, err
		}
		c.letOutputsGo(e.ID)
		f(e)
		return true, nil
	})
}

// call makes a call with one answer.
func (c *Client) call(ctx context.Context, op string, body, answer any) error {
	return c.stream(ctx, op, body, nil, func(_ wire.Conn, raw json.RawMessage, got []*os.File) (bool, error) {
		closeAll(got)
		if answer == nil {
			return false, nil
		}
		return false, json.Unmarshal(raw, answer)
	})
}

// errEnded says that the supervisor has ended in the middle of a call.
var errEnded = fmt.Errorf("connection ended: %w", errdefs.ErrUnavailable)

// again is call for what may be asked twice: of the next supervisor when one is killed in the middle. The undoing of what
// failed for its death, and the start of a daemon, are not to fail for another one's.
func (c *Client) again(ctx context.Context, op string, body, answer any) (err error) {
	for range dialTries {
		if err = c.call(ctx, op, body, answer); !errors.Is(err, errEnded) || ctx.Err() != nil {
			return err
		}
	}
	return err
}

// lacks is an error when a call needs what a supervisor of this version does not have.
func lacks(version int, op string, body any) error {
	run, _ := body.(RunRequest)
	what := ""
	var kind error = errdefs.ErrFailedPrecondition
	switch {
	case (op == "attach" || op == "hold" || op == "restore") && version < wire.VersionAttach,
		op == "upgrade" && version < wire.VersionUpgrade:
		what, kind = op, errdefs.ErrNotImplemented
	case version >= wire.VersionOptions:
	case run.StdioUID != 0:
		what = "user namespaces"
	case len(run.Runtime.Options) > 0:
		what = fmt.Sprintf("options (%q) of an OCI runtime", run.Runtime.Options[0])
	case op == "update":
		what = "updates"
	}
	if what == "" {
		return nil
	}
	return fmt.Errorf("supervisor call %s: the supervisor that runs is an older one, which knows no %s; "+
		"stop all containers and the supervisor: %w", op, what, kind)
}

// stream makes a call and gives each answer to next until that wants no more.
func (c *Client) stream(ctx context.Context, op string, body any, files []*os.File,
	next func(wire.Conn, json.RawMessage, []*os.File) (more bool, err error),
) error {
	conn, version, err := c.dial(ctx)
	if err != nil {
		return fmt.Errorf("supervisor call %s: %w", op, err)
	}
	defer c.forget(conn)
	if run, ok := body.(RunRequest); ok && version < wire.VersionAttach {
		run.LogMax = 0 // better an unlimited log than no container
		body = run
	}
	raw, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("supervisor call %s: %w", op, err)
	}
	if err := lacks(version, op, body); err != nil {
		return err
	}
	hangUp := func() { _ = conn.Close() }
	if op == "exec" { // which answers when all is killed
		hangUp = func() {
			_ = conn.SetReadDeadline(time.Now().Add(execEndWait))
			_ = conn.CloseWrite()
		}
	}
	defer context.AfterFunc(ctx, hangUp)()

	fail := func(err error) error {
		if ctx.Err() != nil {
			return fmt.Errorf("supervisor call %s: %w", op, context.Cause(ctx))
		}
		if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) {
			return fmt.Errorf("supervisor call %s: %w", op, errEnded)
		}
		return fmt.Errorf("supervisor call %s: %w", op, err)
	}
	err = conn.Send(wire.Request{Version: version, Op: op, Body: raw}, files...)
	closeAll(files) // so that whoever has the other end of a pipe sees when the process has gone
	if err != nil {
		return fail(err)
	}
	for {
		var r wire.Response
		got, err := conn.Receive(&r)
		if err != nil {
			return fail(err)
		}
		if r.Error != nil {
			closeAll(got)
			if ctx.Err() != nil {
				return fail(ctx.Err())
			}
			return r.Error
		}
		if more, err := next(conn, r.Body, got); err != nil {
			return fail(err)
		} else if more {
			continue
		}
		if op != "run" {
			return nil
		}
		// Confirms the container, which the server undoes otherwise: so no
		// call that fails here, whatever the moment, leaves one behind.
		if err := conn.Send(struct{}{}); err != nil {
			return fail(err)
		}
		return nil
	}
}

func (c *Client) forget(conn wire.Conn) {
	c.mu.Lock()
	delete(c.conns, conn.UnixConn)
	c.mu.Unlock()
	_ = conn.Close()
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
