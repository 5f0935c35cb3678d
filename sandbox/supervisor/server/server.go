package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/supervisor"
	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/logcopy"
	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/oci"
	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/reaper"
	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/wire"
)

const (
	// idleTime is how long the server stays with no container and no caller.
	idleTime = 5 * time.Second
	// sendTimeout is how long a client may take to read what it is sent.
	sendTimeout = 10 * time.Second
	// lockWait is how long a predecessor that was killed may take to be gone.
	lockWait = 5 * time.Second
)

// Server is one running supervisor.
type Server struct {
	dir    string
	bootID string
	log    *slog.Logger
	reaper *reaper.Reaper
	runner *oci.Runner
	pool   *logcopy.Pool

	attachMemory logcopy.Budget
	inputs       news // of what hold lends

	listener *net.UnixListener
	calls    sync.WaitGroup // connections, and what exits have started

	mu         sync.Mutex
	containers map[string]*container
	busy       int  // connections and background work
	stopping   bool // set once, under mu, with busy and containers zero or on a signal
	idle       *time.Timer
	exits      uint64        // recorded so far; each is numbered
	news       chan struct{} // closed, and made anew, with each exit
}

// Serve runs a supervisor in dir until it has been idle for long enough or ctx
// ends; containers live on in either case. It calls ready when it takes
// calls. When another one serves dir, Serve is an error.
func Serve(ctx context.Context, dir string, log *slog.Logger, ready func()) error {
	lock, err := acquire(filepath.Join(dir, "lock"))
	if err != nil {
		return err
	}
	defer lock.Close()
	s := &Server{dir: dir, log: log, containers: make(map[string]*container), news: make(chan struct{})}
	if s.bootID, err = bootID(); err != nil {
		return fmt.Errorf("reading the boot id: %w", err)
	}
	if s.reaper, err = reaper.New(); err != nil {
		return err
	}
	s.runner = oci.NewRunner(s.reaper)
	if s.pool, err = logcopy.NewPool(filepath.Join(dir, "staging")); err != nil {
		return err
	}
	if err := os.MkdirAll(s.containersDir(), 0o700); err != nil {
		return fmt.Errorf("making the containers' directory: %w", err)
	}
	stopReaper := make(chan struct{})
	var reaping sync.WaitGroup
	reaping.Go(func() { s.reaper.Run(stopReaper) })
	defer reaping.Wait()
	defer close(stopReaper)

	if err := s.listen(); err != nil {
		return err
	}
	s.idle = time.AfterFunc(idleTime, s.stopIfIdle)
	if err := s.adoptAll(); err != nil {
		return err
	}
	ready()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, s.stop)()
	s.accept(ctx)
	cancel()
	s.calls.Wait()
	s.pool.Close()
	return nil
}

func (s *Server) containersDir() string { return filepath.Join(s.dir, "containers") }

func acquire(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the supervisor's directory: %w", err)
	}
	for end := time.Now().Add(lockWait); ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if time.Now().After(end) {
			_ = f.Close()
			return nil, fmt.Errorf("locking %s: %w: another supervisor runs here", path, err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// listen replaces a socket that a predecessor left; the lock is held, so it is dead.
func (s *Server) listen() error {
	path := filepath.Join(s.dir, "supervisor.sock")
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the old socket: %w", err)
	}
	d, err := os.Open(s.dir)
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	defer d.Close()
	// Through a descriptor, as a socket's path is limited to 107 bytes (unix(7)).
	// The directory is 0700, so that the mode needs no haste.
	s.listener, err = net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("/proc/self/fd/%d/supervisor.sock", d.Fd())})
	if err != nil {
		return fmt.Errorf("listening on %s: %w", path, err)
	}
	s.listener.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil {
		return fmt.Errorf("protecting %s: %w", path, err)
	}
	return nil
}

// begin counts a piece of work, or refuses it as the server is about to end.
func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return false
	}
	s.busy++
	s.calls.Add(1)
	return true
}

func (s *Server) end() {
	s.mu.Lock()
	s.busy--
	if s.busy == 0 && len(s.containers) == 0 {
		s.idle.Reset(idleTime)
	}
	s.mu.Unlock()
	s.calls.Done()
}

func (s *Server) stopIfIdle() {
	s.stopWhen(func() bool { return s.busy == 0 && len(s.containers) == 0 })
}

func (s *Server) stop() { s.stopWhen(func() bool { return true }) }

// stopWhen ends the server if what, asked under mu, agrees.
func (s *Server) stopWhen(what func() bool) {
	s.mu.Lock()
	ok := !s.stopping && what()
	s.stopping = s.stopping || ok
	s.mu.Unlock()
	if ok {
		_ = s.listener.Close() // the socket stays; nobody answers on it
	}
}

func (s *Server) accept(ctx context.Context) {
	for {
		conn, err := s.listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors or memory: those who wait keep waiting
			s.log.Error("Cannot accept a call", "err", err)
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		if !s.begin() {
			_ = conn.Close() // without a hello: the client tries the next server
			return
		}
		go func() {
			defer s.end()
			s.serve(ctx, wire.Conn{UnixConn: conn})
		}()
	}
}

// serve handles one connection: hello, request, answers.
func (s *Server) serve(ctx context.Context, conn wire.Conn) {
	defer conn.Close()
	if err := checkPeer(conn.UnixConn); err != nil {
		s.log.Error("Refused a caller", "err", err)
		return
	}
	_ = conn.SetDeadline(time.Now().Add(sendTimeout))
	if err := conn.Send(wire.Hello{Version: wire.Version, MinVersion: wire.MinVersion, PID: os.Getpid()}); err != nil {
		return
	}
	var req wire.Request
	files, err := conn.Receive(&req)
	if err != nil {
		return
	}
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	_ = conn.SetDeadline(time.Time{})

	c := &call{conn: conn, files: files, committed: make(chan struct{})}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go c.listen(cancel) // ends with the connection, which is closed above
	body, err := s.dispatch(ctx, req, c)
	if err != nil {
		_ = c.send(wire.Response{Error: wire.NewError(err)})
		return
	}
	if body != nil {
		_ = c.answer(body)
	}
}

// call is a request's connection.
type call struct {
	conn      wire.Conn
	files     []*os.File
	committed chan struct{}
}

var errHungUp = fmt.Errorf("caller hung up: %w", context.Canceled)

// listen cancels the call when the client goes away. The one message that a
// client may send meanwhile is its commit; for attach, that its stdin has ended.
func (c *call) listen(cancel context.CancelCauseFunc) {
	var ack struct{}
	files, err := c.conn.Receive(&ack)
	if err == nil {
		for _, f := range files {
			_ = f.Close()
		}
		close(c.committed)
		_, _ = c.conn.Receive(&ack)
	}
	cancel(errHungUp)
}

func (c *call) send(r wire.Response, files ...*os.File) error {
	_ = c.conn.SetWriteDeadline(time.Now().Add(sendTimeout))
	return c.conn.Send(r, files...)
}

func (c *call) answer(body any, files ...*os.File) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("encoding an answer: %w", err)
	}
	return c.send(wire.Response{Body: raw}, files...)
}

// dispatch runs a call. A nil body says that it has sent its answers itself.
func (s *Server) dispatch(ctx context.Context, req wire.Request, c *call) (body any, err error) {
	if req.Version < wire.MinVersion || req.Version > wire.Version {
		return nil, fmt.Errorf("protocol version %d is not in %d to %d: %w", req.Version, wire.MinVersion, wire.Version, errdefs.ErrInvalidArgument)
	}
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("Call panicked", "op", req.Op, "panic", fmt.Sprint(p), "stack", stack())
			body, err = nil, fmt.Errorf("supervisor call %s panicked: %v", req.Op, p)
		}
	}()
	decode := func(v any) error {
		if err := wire.Unmarshal(req.Body, v); err != nil {
			return fmt.Errorf("call %s: %w: %w", req.Op, err, errdefs.ErrInvalidArgument)
		}
		return nil
	}
	done := struct{}{}
	switch req.Op {
	case "ping":
		return done, nil
	case "run":
		var r supervisor.RunRequest
		if err := decode(&r); err != nil {
			return nil, err
		}
		return nil, s.run(ctx, r, c)
	case "kill":
		var r supervisor.KillRequest
		if err := decode(&r); err != nil {
			return nil, err
		}
		return done, s.kill(ctx, r)
	case "delete":
		var r supervisor.IDRequest
		if err := decode(&r); err != nil {
			return nil, err
		}
		return done, s.delete(ctx, r.ID)
	case "exec":
		var r supervisor.ExecCall
		if err := decode(&r); err != nil {
			return nil, err
		}
		return s.exec(ctx, r, c)
	case "attach":
		var r supervisor.AttachCall
		if err := decode(&r); err != nil {
			return nil, err
		}
		return s.attach(ctx, r, c)
	case "update":
		var r supervisor.UpdateRequest
		if err := decode(&r); err != nil {
			return nil, err
		}
		return done, s.update(ctx, r)
	case "checkpoint":
		var r supervisor.CheckpointRequest
		if err := decode(&r); err != nil {
			return nil, err
		}
		return done, s.checkpoint(ctx, r)
	case "reopenLog":
		var r supervisor.IDRequest
		if err := decode(&r); err != nil {
			return nil, err
		}
		return done, s.reopenLog(r.ID)
	case "hold":
		return nil, s.hold(ctx, c)
	case "restore":
		var r supervisor.IDRequest
		if err := decode(&r); err != nil {
			return nil, err
		}
		return done, s.restore(r.ID, c.files)
	case "list":
		return s.list(ctx)
	case "watch":
		return nil, s.watch(ctx, c)
	}
	return nil, fmt.Errorf("call %q: %w", req.Op, errdefs.ErrNotImplemented)
}

// checkPeer refuses callers of another user (SO_PEERCRED, unix(7)).
func checkPeer(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil {
		return cerr
	}
	if err != nil {
		return err
	}
	if int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("process %d of user %d", cred.Pid, cred.Uid)
	}
	return nil
}
