package server

import (
	"context"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/supervisor"
	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/logcopy"
	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/reaper"
	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/wire"
)

// inherit goes on with a container that this process had when it was another
// program. Its first process is a child still, unless a supervisor before that was
// killed. On an error nothing of it is open any more.
func (s *Server) inherit(h *heldContainer, left map[logcopy.Key]*logcopy.Leftover) (err error) {
	c := s.newContainer(h.ID)
	c.killed, c.state = h.Killed, running
	c.runtimeGone.Store(h.RuntimeGone)
	c.pidfd = take(&h.PIDFD)
	if h.Input >= 0 {
		c.input = os.NewFile(uintptr(take(&h.Input)), "stdin")
	}
	defer func() {
		if err != nil {
			c.closeFiles()
			h.close() // what c has not taken
		}
	}()
	if c.rec, err = s.readRecord(h.ID); err != nil {
		return err
	}
	if c.rec.PID == 0 && h.Exit == nil { // its removal was begun, and has failed
		if c.rec.PID, err = pidOf(c.pidfd); err != nil {
			return err
		}
		c.unstarted = true
	}
	req := &c.rec.Request
	if c.file, err = logcopy.Inherit(h.Log, req.LogDir, req.LogPath, req.LogMax, c.log); err != nil {
		return err
	}
	h.Log = -1
	for i, name := range []string{"stdout", "stderr"} {
		key := logcopy.Key{ID: c.id, Stream: name}
		l, out := left[key], &h.Outputs[i]
		delete(left, key)
		if out.FD < 0 {
			if l != nil {
				l.Flush(key, c.file, s.pool, c.log)
			}
			continue
		}
		src := os.NewFile(uintptr(take(&out.FD)), name)
		copier, err := logcopy.Start(src, key, c.file, s.pool, l, out.Finite, c.log)
		if err != nil {
			_ = src.Close()
			return err
		}
		c.copiers = append(c.copiers, copier)
	}
	if h.Exit != nil {
		c.exit, c.number, c.state = h.Exit, h.Number, exited
		close(c.done)
	}
	s.mu.Lock()
	s.containers[c.id] = c
	s.mu.Unlock()
	if h.Exit != nil || s.reaper.Notify(c.rec.PID, c.ended) {
		return nil
	}
	return c.watchOrphan()
}

// pidOf is the number of the process of a pidfd, -1 if it has been waited for.
func pidOf(pidfd int) (pid int, err error) {
	info, err := readBounded(fmt.Sprintf("/proc/self/fdinfo/%d", pidfd), 4<<10)
	if err != nil {
		return 0, err
	}
	_, text, _ := strings.Cut(string(info), "\nPid:")
	if _, err := fmt.Sscan(text, &pid); err != nil {
		return 0, fmt.Errorf("process of descriptor %d: %w", pidfd, err)
	}
	return pid, nil
}

// take is the descriptor, which is the caller's from then on.
func take(fd *int) int {
	n := *fd
	*fd = -1
	return n
}

// resume goes on waiting for an exec'd process.
func (s *Server) resume(ctx context.Context, h heldExec) error {
	conn, err := wire.Inherit(h.Call)
	if err != nil {
		return err
	}
	c, err := s.lookup(h.Container)
	if err != nil {
		_ = conn.Close()
		return err
	}
	e := &execution{c: c, call: newCall(conn, nil), base: h.Files, pid: h.PID, done: make(chan struct{})}
	if h.ExitCode != nil {
		e.ended(reaper.Exit{PID: h.PID, Status: unix.WaitStatus(*h.ExitCode << 8)})
	} else if !s.reaper.Notify(h.PID, e.ended) {
		_ = conn.Close()
		return fmt.Errorf("exec'd process %d is not a child of the supervisor", h.PID)
	}
	c.execs.Add(1)
	s.begin()
	go func() {
		defer s.end()
		defer conn.Close()
		defer c.execs.Done()
		defer e.removeFiles()
		s.gate.Enter()
		defer s.gate.Leave()
		s.converse(ctx, e.call, func(ctx context.Context) (any, error) {
			ctx, cancel := c.untilDeleted(ctx)
			defer cancel()
			code, err := e.wait(ctx)
			return supervisor.ExecAnswer{ExitCode: code}, err
		})
	}()
	return nil
}

// takeOver goes on with all that was handed over beside the containers.
func (s *Server) takeOver(ctx context.Context, h *handover) {
	for _, e := range h.Execs {
		if err := s.resume(ctx, e); err != nil {
			s.log.Error("Command in a container is lost", "container", e.Container, "err", err)
		}
	}
	s.log.Info("Supervisor has become another program", "from", h.From, "version", s.version, "containers", len(h.Containers), "execs", len(h.Execs))
}

// answerUpgrade tells the client that has asked for it.
func (s *Server) answerUpgrade(h *handover) {
	conn, err := wire.Inherit(h.Call)
	if err != nil {
		s.log.Error("Nobody is told of the upgrade", "err", err)
		return
	}
	defer conn.Close()
	_ = newCall(conn, nil).answer(supervisor.UpgradeAnswer{Replaced: true, Version: s.version}) // who has gone does not need it
}
