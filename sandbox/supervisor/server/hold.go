package server

import (
	"context"
	"fmt"
	"os"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/supervisor"
	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/logcopy"
	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/wire"
)

// news tells that something has changed. Its lock is taken last.
type news struct {
	mu sync.Mutex
	ch chan struct{}
}

// next is closed by the next tell.
func (n *news) next() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ch == nil {
		n.ch = make(chan struct{})
	}
	return n.ch
}

func (n *news) tell() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ch != nil {
		close(n.ch)
		n.ch = nil
	}
}

// hold lends the caller duplicates of what containers would lose with this
// process: their terminals, and the only writing ends of stdin. It says of each
// when it is over.
func (s *Server) hold(ctx context.Context, call *call) error {
	lent := make(map[*container]bool)
	for first := true; ; first = false {
		changed := s.inputs.next()
		s.mu.Lock()
		var fresh []*container
		for _, c := range s.containers {
			if !lent[c] {
				fresh = append(fresh, c)
			}
		}
		s.mu.Unlock()
		for c := range lent { // first, as a later container may have the same id
			if f, _ := c.lend(false); f == nil {
				delete(lent, c)
				if err := call.answer(supervisor.HoldAnswer{ID: c.id}); err != nil {
					return err
				}
			}
		}
		for _, c := range fresh {
			f, err := c.lend(true)
			if err != nil {
				c.log.Warn("Nobody holds the container's input besides this process", "err", err)
			}
			if f == nil {
				continue
			}
			err = call.answer(supervisor.HoldAnswer{ID: c.id, Terminal: c.rec.Request.Terminal}, f)
			_ = f.Close()
			if err != nil {
				return err
			}
			lent[c] = true
		}
		if first {
			if err := call.answer(supervisor.HoldAnswer{}); err != nil {
				return err
			}
		}
		s.gate.Leave()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		s.gate.Join()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// lend returns what the container would lose with this process, or nil; a
// duplicate of it if asked.
func (c *container) lend(duplicate bool) (*os.File, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	req := &c.rec.Request
	if c.state != running || c.input == nil || !req.Terminal && !req.StdinOnce {
		return nil, nil
	}
	if !duplicate {
		return c.input, nil
	}
	return wire.Duplicate(c.input)
}

// restore takes back the terminal of a container that was adopted without it.
func (s *Server) restore(id string, files []*os.File) error {
	c, err := s.lookup(id)
	if err != nil {
		return err
	}
	if len(files) != 1 {
		return fmt.Errorf("terminal of container %s: %d files instead of one: %w", id, len(files), errdefs.ErrInvalidArgument)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != running || !c.rec.Request.Terminal || len(c.copiers) > 0 {
		return fmt.Errorf("container %s lacks no terminal: %w", id, errdefs.ErrFailedPrecondition)
	}
	if err := c.takeTerminal(files[0]); err != nil {
		return fmt.Errorf("terminal of container %s: %w", id, err)
	}
	c.srv.inputs.tell()
	return nil
}

// takeTerminal goes on with a terminal's master; mu is held.
func (c *container) takeTerminal(master *os.File) error {
	input, err := wire.Duplicate(master)
	if err != nil {
		return err
	}
	src, err := wire.Duplicate(master)
	if err == nil {
		err = checkMaster(src)
	}
	var copier *logcopy.Copier
	if err == nil {
		copier, err = logcopy.Start(src, logcopy.Key{ID: c.id, Stream: "stdout"}, c.file, c.srv.pool, nil, false, c.log)
	}
	if err != nil {
		_ = src.Close() // nil, or not taken
		_ = input.Close()
		return err
	}
	c.copiers, c.input = []*logcopy.Copier{copier}, input
	return nil
}

// checkMaster wants a pseudo-terminal's master that does not block.
func checkMaster(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) {
		var flags int
		if _, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN); err != nil {
			return
		}
		if flags, err = unix.FcntlInt(fd, unix.F_GETFL, 0); err == nil && flags&unix.O_NONBLOCK == 0 {
			err = errdefs.ErrInvalidArgument
		}
	})
	if cerr != nil {
		return cerr
	}
	return err
}
