package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/supervisor"
)

const (
	// drainQuiet is how long after a container's end its output is waited for
	// when processes that outlive it hold it open: from the last byte on, and
	// drainMax in all. The copying itself goes on until the deletion.
	drainQuiet = 250 * time.Millisecond
	drainMax   = 5 * time.Second
	// killTimeout bounds the wait for processes to end that got SIGKILL.
	killTimeout = 10 * time.Second
	// deleteTimeout bounds the OCI runtime's delete, which goes on when the
	// call has ended: killed in the middle it may leave what it cannot delete.
	deleteTimeout = 30 * time.Second

	// unknownCode is the exit code of a process whose own cannot be known.
	unknownCode = 255
)

// handle has the end of the first process recorded; mu is not held.
func (c *container) handle(exit supervisor.Exit) {
	c.srv.gate.Join() // until all of it is done
	c.mu.Lock()
	if c.pidfd >= 0 {
		_ = unix.Close(c.pidfd)
		c.pidfd = -1
	}
	c.mu.Unlock()
	if !c.srv.begin() { // the server ends: what the next one needs, and no more
		c.store(exit, writeExit)
		c.srv.gate.Leave()
		return
	}
	go func() {
		defer c.srv.end()
		defer c.srv.gate.Leave()
		c.store(exit, noteExit) // nobody else has its code any more, and the output may take long
		c.record(exit)
		c.deleteEnded()
	}()
}

// deleteEnded has the runtime delete the container, which every end of one is
// followed by. Begun at once it is over when it is asked for.
func (c *container) deleteEnded() {
	ctx, cancel := context.WithTimeout(context.Background(), deleteTimeout)
	defer cancel()
	if c.lock(ctx) != nil {
		return
	}
	defer c.unlock()
	if c.is() != exited {
		return
	}
	if err := c.deleteFromRuntime(ctx); err != nil {
		c.log.Warn("Ended container is not deleted from the OCI runtime yet", "err", err)
	}
}

// store writes the exit down.
func (c *container) store(exit supervisor.Exit, write func(string, supervisor.Exit) error) {
	if err := c.srv.room.withSpare(func() error { return write(c.dir, exit) }); err != nil {
		c.log.Error("Exit is kept in memory only", "err", err)
	}
}

// record makes the exit known: first to the log, then to the disk, then to those who watch.
func (c *container) record(exit supervisor.Exit) {
	c.drain(drainMax)
	c.closeInput()
	c.store(exit, writeExit)
	s := c.srv
	s.mu.Lock()
	c.mu.Lock()
	c.exit, c.state = &exit, exited
	c.mu.Unlock()
	s.exits++
	c.number = s.exits
	close(s.news)
	s.news = make(chan struct{})
	s.mu.Unlock()
	close(c.done)
}

// drain waits until the container's output has ended, or nothing comes any more.
func (c *container) drain(limit time.Duration) {
	c.mu.Lock()
	copiers := c.copiers
	c.mu.Unlock()
	end := time.NewTimer(limit)
	defer end.Stop()
	for _, copier := range copiers {
		for seen := copier.Bytes(); ; {
			quiet := time.NewTimer(drainQuiet)
			select {
			case <-copier.Done():
			case <-end.C:
				quiet.Stop()
				return
			case <-quiet.C: // not so when the copier itself got no processor for that long
				if n := copier.Bytes(); n != seen || !copier.Idle() {
					seen = n
					continue
				}
			}
			quiet.Stop()
			break
		}
	}
}

func (s *Server) kill(ctx context.Context, req supervisor.KillRequest) error {
	if req.Signal < 1 || req.Signal > 64 {
		return fmt.Errorf("signal %d is not in 1 to 64: %w", int(req.Signal), errdefs.ErrInvalidArgument)
	}
	c, err := s.lookup(req.ID)
	if err != nil {
		return err
	}
	err = c.signal(req.Signal)
	if !req.All || c.is() == starting {
		return err
	}
	files := c.rec.Request.CgroupProcs
	if req.Signal == unix.SIGKILL {
		ctx, cancel := context.WithTimeout(ctx, killTimeout)
		defer cancel()
		if err := killCgroup(ctx, files); err != nil {
			return fmt.Errorf("container %s: %w", c.id, err)
		}
		return err
	}
	pids, perr := cgroupPIDs(head(files, 1))
	for _, pid := range pids {
		if pid != c.rec.PID {
			_ = unix.Kill(pid, req.Signal)
		}
	}
	return errors.Join(err, perr)
}

// signal sends sig to the first process.
func (c *container) signal(sig syscall.Signal) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == starting {
		return fmt.Errorf("container %s is not started: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	err := error(unix.ESRCH)
	if c.pidfd >= 0 {
		err = unix.PidfdSendSignal(c.pidfd, sig, nil, 0)
		c.killed = c.killed || err == nil && sig == unix.SIGKILL
	}
	if err == unix.ESRCH {
		return fmt.Errorf("container %s has ended: %w", c.id, errdefs.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("sending signal %d to container %s: %w", int(sig), c.id, err)
	}
	return nil
}

func (s *Server) delete(ctx context.Context, id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	c, err := s.lookup(id)
	if err != nil {
		return nil // absent is what is wanted
	}
	ctx, cancel := context.WithTimeout(ctx, killTimeout+deleteTimeout)
	defer cancel()
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	switch c.is() {
	case gone:
		return nil
	case starting:
		return c.undo()
	}
	return c.destroy(ctx)
}

// destroy kills and removes a container that runs or has ended. Its lock is
// held. On an error it stays, and destroy may be called again.
func (c *container) destroy(ctx context.Context) error {
	if c.is() == running {
		c.unstart()
		_ = c.signal(unix.SIGKILL) // an error: it has ended just now
		if err := c.awaitExit(ctx); err != nil {
			return err
		}
	}
	select {
	case <-c.dying:
	default:
		close(c.dying)
	}
	kctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	if err := killCgroup(kctx, c.rec.Request.CgroupProcs); err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	if err := c.deleteFromRuntime(ctx); err != nil {
		return err
	}
	c.execs.Wait() // they kill what they have started, which is bounded
	return c.clear()
}

// unstart makes the record that of a container without a process: if this supervisor dies from here on, the next one
// goes on with the removal, and does not tell the SIGKILL as an end of the container's own.
func (c *container) unstart() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unstarted = true
	if err := c.writeRecord(); err != nil {
		c.log.Warn("Container is being removed, which its record cannot say", "err", err)
	}
}

// writeRecord writes the record as it is; mu is held.
func (c *container) writeRecord() error {
	rec := c.rec
	if c.unstarted {
		rec.PID = 0
	}
	return writeFile(c.dir, recordFile, rec)
}

func (c *container) awaitExit(ctx context.Context) error {
	frozen := time.NewTimer(300 * time.Millisecond)
	defer frozen.Stop()
	stuck := time.NewTimer(killTimeout)
	defer stuck.Stop()
	for {
		select {
		case <-c.done:
			return nil
		case <-frozen.C:
			thaw(c.rec.Request.CgroupProcs)
		case <-stuck.C:
			return fmt.Errorf("container %s: process %d does not end on SIGKILL: %w", c.id, c.rec.PID, errdefs.ErrUnavailable)
		case <-ctx.Done():
			return fmt.Errorf("container %s: waiting for process %d to end: %w", c.id, c.rec.PID, context.Cause(ctx))
		}
	}
}

var errForce = errors.New("not known to have ended")

// deleteFromRuntime has the OCI runtime delete the container, once. op is held.
func (c *container) deleteFromRuntime(ctx context.Context) error {
	if c.runtimeGone.Load() || c.rec.Version == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, deleteTimeout)
	defer cancel()
	give, err := c.srv.room.await(ctx, deleteNeeds)
	if err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	defer give()
	// runc's --force sends SIGKILL and sleeps for 100 ms, be there a process or
	// not; so it is for those of which that is not known.
	err = errForce
	run := func(args ...string) error {
		cmd := c.command("delete", args...)
		cmd.Grace = deleteTimeout
		return c.srv.runner.Run(ctx, cmd)
	}
	if c.is() == exited && len(c.rec.Request.CgroupProcs) > 0 && killCgroup(ctx, c.rec.Request.CgroupProcs) == nil {
		err = run(c.id)
	}
	if err != nil {
		err = run("--force", c.id)
	}
	state := filepath.Join(c.rec.Request.Runtime.Root, c.id)
	if err != nil && exists(filepath.Join(state, "status")) && !exists(filepath.Join(state, "config.json")) {
		err = os.RemoveAll(state) // of a crun that was killed when it deleted these two, and will have it no more
	}
	if err != nil {
		// A runtime that is not there cannot have made anything.
		if _, serr := os.Stat(c.rec.Request.Runtime.Path); serr == nil || exists(state) {
			return fmt.Errorf("container %s: %w", c.id, err)
		}
	}
	removeCgroups(c.rec.Request.CgroupProcs)
	c.runtimeGone.Store(true)
	return nil
}

// clear closes and removes what is left of the container here. op is held.
func (c *container) clear() error {
	c.drain(drainMax)
	c.closeFiles()
	// The record first: a directory without one is removed at the next start.
	_ = os.Remove(filepath.Join(c.dir, recordFile))
	if err := os.RemoveAll(c.dir); err != nil {
		return fmt.Errorf("container %s: removing its files: %w", c.id, err)
	}
	c.forget()
	return nil
}

// closeFiles closes all that is open of the container.
func (c *container) closeFiles() {
	c.mu.Lock()
	copiers, file, pidfd := c.copiers, c.file, c.pidfd
	c.copiers, c.file, c.pidfd = nil, nil, -1
	c.mu.Unlock()
	for _, copier := range copiers {
		copier.Stop()
	}
	c.closeInput()
	if file != nil {
		file.Close()
	}
	if pidfd >= 0 {
		_ = unix.Close(pidfd)
	}
}
