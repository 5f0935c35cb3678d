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
	"os/signal"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantry-cri/gantry/sandbox/supervisor"
	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/gate"
	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/logcopy"
	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/oci"
	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/peer"
	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/reaper"
	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/wire"
)

const (
	// idleTime is how long the server stays with no container and no caller.
	idleTime = 5 * time.Second
	// sendTimeout is how long a client may take to read what it is sent.
	sendTimeout = 10 * time.Second
)

// Config is what a supervisor is started with.
type Config struct {
	Dir     string // of the socket and the records, absolute
	Version string // of the program
	Log     *slog.Logger
	Ready   func() // called when it takes calls

	// Handover is the descriptor under which this process, when it was another
	// program, has left what [Check] has read; 0 for a new process.
	Handover int
}

// Server is one running supervisor.
type Server struct {
	dir     string
	version string
	bootID  string
	log     *slog.Logger

	// gate is passed by calls and by ends of processes; see upgrade.go. Those
	// who wait for what may take as long as it likes are outside meanwhile.
	gate      gate.Gate
	upgrading sync.Mutex // taken before the gate is shut
	lock      *os.File
	hung      <-chan struct{} // closed when no predecessor is left that hangs, see lock.go; nil: none was

	reaper *reaper.Reaper
	runner *oci.Runner
	pool   *logcopy.Pool

	room         room
	attachMemory logcopy.Budget
	inputs       news // of what hold lends

	listener *net.UnixListener
	calls    sync.WaitGroup // connections, and what exits have started

	mu         sync.Mutex
	containers map[string]*container
	execs      map[*execution]struct{} // those that wait outside the gate
	attached   int                     // attach calls
	busy       int                     // connections and background work
	stopping   bool                    // set once, under mu, with busy and containers zero or on a signal
	idle       *time.Timer
	exits      uint64        // recorded so far; each is numbered
	news       chan struct{} // closed, and made anew, with each exit
}

// Serve runs a supervisor until it has been idle for long enough, SIGTERM or
// SIGINT has come, or ctx ends; containers live on in any case. When another one serves the directory,
// Serve is an error.
func Serve(ctx context.Context, cfg Config) (err error) {
	ctx, unhandle := signal.NotifyContext(ctx, endSignals[:]...)
	defer unhandle()
	s := &Server{
		dir: cfg.Dir, version: cfg.Version, log: cfg.Log,
		containers: make(map[string]*container), execs: make(map[*execution]struct{}), news: make(chan struct{}),
	}
	var h *handover
	if cfg.Handover > 0 {
		if h, err = takeHandover(cfg.Handover); err != nil {
			return err
		}
		s.exits = h.Exits
		s.lock = os.NewFile(uintptr(h.Lock), "lock")
	} else if s.lock, err = acquire(s.dir, s.log); err != nil {
		return err
	}
	defer s.lock.Close()
	if s.bootID, err = bootID(); err != nil {
		return fmt.Errorf("reading the boot id: %w", err)
	}
	if s.reaper, err = reaper.New(&s.gate); err != nil {
		return err
	}
	s.runner = oci.NewRunner(s.reaper)
	if s.pool, err = logcopy.NewPool(filepath.Join(s.dir, "staging")); err != nil {
		return err
	}
	if err := os.MkdirAll(s.containersDir(), 0o700); err != nil {
		return fmt.Errorf("making the containers' directory: %w", err)
	}
	if h == nil {
		err = s.listen()
	} else {
		err = s.listenOn(h.Listener)
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if s.hung, err = awaitHung(ctx, s.dir); err != nil {
		return err
	}
	s.idle = time.AfterFunc(idleTime, s.stopIfIdle)
	s.begin() // it is not idle, however long that takes
	err = s.adoptAll(h)
	if err == nil && h != nil {
		s.takeOver(ctx, h)
	}
	s.end()
	if err != nil {
		return err
	}
	// Not before, as it takes the exits of children that nobody waits for yet.
	stopReaper := make(chan struct{})
	var reaping sync.WaitGroup
	reaping.Go(func() { s.reaper.Run(stopReaper) })
	defer reaping.Wait()
	defer close(stopReaper)
	cfg.Ready()
	if h != nil {
		s.answerUpgrade(h)
	}
	s.room.fill()

	defer context.AfterFunc(ctx, s.stop)()
	s.accept(ctx)
	cancel()
	s.calls.Wait()
	s.pool.Close()
	return nil
}

func (s *Server) containersDir() string { return filepath.Join(s.dir, "containers") }

// listen replaces a socket that a predecessor left; the lock is held, so it is dead.
func (s *Server) listen() error {
	path := filepath.Join(s.dir, peer.SocketName)
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
	s.listener, err = net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), peer.SocketName)})
	if err != nil {
		return fmt.Errorf("listening on %s: %w", path, err)
	}
	s.listener.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil {
		return fmt.Errorf("protecting %s: %w", path, err)
	}
	return nil
}

// listenOn goes on with the listener of this process when it was another program.
func (s *Server) listenOn(fd int) error {
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return fmt.Errorf("listening on: %w", err)
	}
	unixListener, ok := l.(*net.UnixListener)
	if !ok {
		_ = l.Close()
		return fmt.Errorf("listening on: descriptor %d is no Unix listener", fd)
	}
	s.listener = unixListener
	s.listener.SetUnlinkOnClose(false)
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
	s.gate.Join()
	defer s.gate.Leave()
	s.mu.Lock()
	ok := !s.stopping && what()
	s.stopping = s.stopping || ok
	s.mu.Unlock()
	if ok {
		_ = s.listener.Close() // the socket stays; nobody answers on it
	}
}

// call is a request's connection.
type call struct {
	conn      wire.Conn
	files     []*os.File
	committed chan struct{}
	begun     func() // of new work: opens no more descriptors than it has
}

func newCall(conn wire.Conn, files []*os.File) *call {
	return &call{conn: conn, files: files, committed: make(chan struct{}), begun: func() {}}
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
	if n := needs[req.Op]; n > 0 {
		if c.begun, err = s.room.take(n, int64(len(req.Body))); err != nil {
			return nil, fmt.Errorf("supervisor call %s: %w", req.Op, err)
		}
		defer c.begun()
	}
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
	case "upgrade":
		var r supervisor.UpgradeRequest
		if err := decode(&r); err != nil {
			return nil, err
		}
		return s.upgrade(ctx, r, c)
	}
	return nil, fmt.Errorf("call %q: %w", req.Op, errdefs.ErrNotImplemented)
}
