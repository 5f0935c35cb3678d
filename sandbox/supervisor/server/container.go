package server

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/containerd/errdefs"

	"github.com/gantry-cri/gantry/sandbox/supervisor"
	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/logcopy"
)

type state int

const (
	starting state = iota // from the record's first writing on; a failed undo leaves it so
	running
	exited // its exit is recorded
	gone   // no longer in the table
)

// container is one container from its run to its deletion.
type container struct {
	srv *Server
	id  string
	dir string
	log *slog.Logger

	op          chan struct{} // a lock, see doc.go
	runtimeGone atomic.Bool   // the OCI runtime has deleted it; set with op held

	done    chan struct{} // closed when the exit is recorded
	dying   chan struct{} // closed when it is to be deleted: execs end
	execs   sync.WaitGroup
	execSeq int // guarded by mu

	mu      sync.Mutex
	state   state
	pending bool // its caller has not confirmed yet that it knows of it
	rec     record

	unstarted bool // its record says that it has no process, see unstart

	pidfd   int              // -1 when its process is gone
	early   *supervisor.Exit // came while starting
	killed  bool             // by our own SIGKILL
	exit    *supervisor.Exit
	number  uint64 // of the exit; guarded by Server.mu
	file    *logcopy.File
	copiers []*logcopy.Copier
	input   *os.File // our side of stdin, or the terminal, kept open for who attaches; may be nil

	stdinEnded chan struct{} // closed when one session's end has ended stdin
}

func (s *Server) newContainer(id string) *container {
	return &container{
		srv: s, id: id, dir: filepath.Join(s.containersDir(), id), log: s.log.With("container", id),
		op: make(chan struct{}, 1), done: make(chan struct{}), dying: make(chan struct{}), stdinEnded: make(chan struct{}), pidfd: -1,
	}
}

// lock takes op.
func (c *container) lock(ctx context.Context) error {
	select {
	case c.op <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("container %s: another operation on it takes long: %w", c.id, context.Cause(ctx))
	}
}

// lockRunning takes op of a container that runs; any other is errdefs.ErrFailedPrecondition.
func (c *container) lockRunning(ctx context.Context) error {
	if err := c.lock(ctx); err != nil {
		return err
	}
	if c.is() != running {
		c.unlock()
		return fmt.Errorf("container %s does not run: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	return nil
}

func (c *container) unlock() { <-c.op }

func (c *container) is() state {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

// lookup returns the container, which may be in any state.
func (s *Server) lookup(id string) (*container, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.containers[id]; c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
}

// reserve returns a new container with its lock taken. A half-made one of the
// same id is waited for and undone first.
func (s *Server) reserve(ctx context.Context, id string) (*container, error) {
	for {
		s.mu.Lock()
		c := s.containers[id]
		if c == nil {
			c = s.newContainer(id)
			c.op <- struct{}{}
			s.containers[id] = c
			s.mu.Unlock()
			return c, nil
		}
		s.mu.Unlock()
		if err := c.lock(ctx); err != nil {
			return nil, err
		}
		var err error
		switch c.is() {
		case starting:
			err = c.undo()
		case running, exited:
			err = fmt.Errorf("container %s: %w", id, errdefs.ErrAlreadyExists)
		}
		c.unlock()
		if err != nil {
			return nil, err
		}
	}
}

// forget takes the container, whose lock is held, out of the table.
func (c *container) forget() {
	c.mu.Lock()
	c.state = gone
	c.mu.Unlock()
	s := c.srv
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.containers, c.id)
	if s.busy == 0 && len(s.containers) == 0 {
		s.idle.Reset(idleTime)
	}
}

// list waits for those whose caller has yet to confirm them: they are kept or
// undone next, and a daemon that asks after a crash must not take one for
// running that is being undone for the daemon before it.
func (s *Server) list(ctx context.Context) (supervisor.ListAnswer, error) {
	s.mu.Lock()
	all := make([]*container, 0, len(s.containers))
	for _, c := range s.containers {
		all = append(all, c)
	}
	s.mu.Unlock()
	a := supervisor.ListAnswer{Containers: make([]supervisor.State, 0, len(all))}
	for _, c := range all {
		c.mu.Lock()
		if c.pending && c.state != starting {
			c.mu.Unlock()
			if err := c.lock(ctx); err != nil {
				return a, err
			}
			c.unlock()
			c.mu.Lock()
		}
		if c.state == running || c.state == exited {
			a.Containers = append(a.Containers, supervisor.State{ID: c.id, PID: c.rec.PID, Runtime: c.rec.Request.Runtime, Exit: c.exit})
		}
		c.mu.Unlock()
	}
	slices.SortFunc(a.Containers, func(x, y supervisor.State) int { return strings.Compare(x.ID, y.ID) })
	return a, nil
}

// watch sends every exit once, the recorded ones first. It keeps no queue: an
// exit stays with its container until that is deleted.
func (s *Server) watch(ctx context.Context, c *call) error {
	type event struct {
		number uint64
		exit   supervisor.Exit
	}
	for last := uint64(0); ; {
		var events []event
		s.mu.Lock()
		for _, c := range s.containers {
			if c.number > last {
				events = append(events, event{c.number, *c.exit})
			}
		}
		last = s.exits
		news := s.news
		s.mu.Unlock()
		slices.SortFunc(events, func(x, y event) int { return int(x.number) - int(y.number) })
		for _, e := range events {
			if err := c.answer(e.exit); err != nil {
				return err
			}
		}
		s.gate.Leave()
		select {
		case <-news:
		case <-ctx.Done():
		}
		s.gate.Join()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

func (s *Server) reopenLog(id string) error {
	c, err := s.lookup(id)
	if err != nil {
		return err
	}
	c.mu.Lock()
	file := c.file
	c.mu.Unlock()
	if file == nil {
		return fmt.Errorf("container %s is not started: %w", id, errdefs.ErrFailedPrecondition)
	}
	return file.Reopen()
}

func stack() string { return string(head(debug.Stack(), 4<<10)) }
