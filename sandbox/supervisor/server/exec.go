package server

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantry-cri/gantry/sandbox/supervisor"
	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/oci"
	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/reaper"
)

// execGrace is how long an OCI runtime that starts a process may go on after
// the call's end: killed in the middle it leaves a process that nobody can name.
const execGrace = 5 * time.Second

// errDeleted ends exec calls of a container that is deleted.
var errDeleted = fmt.Errorf("container is deleted: %w", errdefs.ErrFailedPrecondition)

// exec runs a process in the container and answers with its exit code. When
// ctx ends, which the end of the connection does, its session is killed.
func (s *Server) exec(ctx context.Context, req supervisor.ExecCall, call *call) (any, error) {
	c, err := s.lookup(req.ID)
	if err != nil {
		return nil, err
	}
	stdio, err := execFiles(&req, call.files)
	if err != nil {
		return nil, err
	}
	base, err := c.beginExec()
	if err != nil {
		return nil, err
	}
	defer c.execs.Done()
	ctx, cancel := c.untilDeleted(ctx)
	defer cancel()
	e := &execution{c: c, call: call, base: base, done: make(chan struct{})}
	defer e.removeFiles()
	specFile, pidFile := e.files()
	if err := os.WriteFile(specFile, req.Process, 0o600); err != nil {
		return nil, fmt.Errorf("exec in container %s: %w", c.id, err)
	}
	e.cmd = c.command("exec", "--detach", "--process", specFile, "--pid-file", pidFile)
	e.cmd.Grace = execGrace
	if req.Terminal {
		console, err := listenConsole(c.dir)
		if err != nil {
			return nil, err
		}
		defer console.close()
		e.cmd.Args = append(e.cmd.Args, "--console-socket", console.path())
		e.started = func() error {
			master, err := console.receive(ctx)
			if err != nil {
				return err
			}
			defer master.Close()
			call.begun()
			return call.answer(supervisor.ExecAnswer{Console: true}, master)
		}
	} else {
		if stdio[2] == nil { // not the runtime's own, which would be kept for its messages
			if stdio[2], err = s.runner.Null(); err != nil {
				return nil, fmt.Errorf("exec in container %s: %w", c.id, err)
			}
			defer stdio[2].Close()
		}
		e.cmd.Stdin, e.cmd.Stdout, e.cmd.Stderr = stdio[0], stdio[1], stdio[2]
		e.started = func() error {
			for _, f := range call.files { // the process has its own; whoever reads must see their end
				_ = f.Close()
			}
			call.begun()
			return nil
		}
	}
	code, err := e.run(ctx)
	if err != nil {
		return nil, err
	}
	return supervisor.ExecAnswer{ExitCode: code}, nil
}

// untilDeleted is a context that ends with the container's deletion too.
func (c *container) untilDeleted(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-c.dying:
			cancel(errDeleted)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// execution is one exec'd process.
type execution struct {
	c       *container
	call    *call
	cmd     oci.Command
	base    string       // the beginning of its files' names
	started func() error // called once the process runs

	pid  int
	exit atomic.Pointer[reaper.Exit]
	done chan struct{} // closed when exit is set
}

// ended is called by the reaper.
func (e *execution) ended(x reaper.Exit) {
	e.exit.Store(&x)
	close(e.done)
}

func (e *execution) files() (spec, pid string) { return e.base + ".json", e.base + ".pid" }

func (e *execution) removeFiles() {
	spec, pid := e.files()
	_ = os.Remove(spec)
	_ = os.Remove(pid)
}

func (e *execution) run(ctx context.Context) (code int, err error) {
	c := e.c
	e.cmd.Args = append(e.cmd.Args, c.id)
	release := c.srv.reaper.Hold() // the process may end before its pid file is read
	defer func() { release() }()
	if err := c.srv.runner.Run(ctx, e.cmd); err != nil {
		e.killLeft()
		if c.ending() {
			err = fmt.Errorf("container %s has ended: %w: %w", c.id, errdefs.ErrFailedPrecondition, err)
		}
		return 0, err
	}
	_, pidFile := e.files()
	if e.pid, err = readPIDFile(pidFile); err != nil {
		return 0, err
	}
	if !c.srv.reaper.Notify(e.pid, e.ended) {
		c.killExec(e.pid)
		return 0, fmt.Errorf("exec in container %s: its process %d is not a child of the supervisor", c.id, e.pid)
	}
	release()
	release = func() {}
	if err := e.started(); err != nil {
		c.killExec(e.pid)
		return 0, err
	}
	return e.wait(ctx)
}

// wait waits for the process' end, which the supervisor may become another
// program meanwhile: that then waits instead.
func (e *execution) wait(ctx context.Context) (code int, err error) {
	s := e.c.srv
	s.mu.Lock()
	s.execs[e] = struct{}{}
	s.mu.Unlock()
	s.gate.Leave()
	select {
	case <-e.done:
	case <-ctx.Done():
	}
	s.gate.Join() // not Enter, as a deletion may wait for this
	s.mu.Lock()
	delete(s.execs, e)
	s.mu.Unlock()
	if x := e.exit.Load(); x != nil {
		return x.Code(), nil
	}
	e.c.killExec(e.pid)
	return 0, fmt.Errorf("exec in container %s: %w", e.c.id, context.Cause(ctx))
}

// ending says whether the container's first process has ended or is about to:
// its end is recorded only when its output has been copied, but from its
// beginning on no process can be started beside it.
func (c *container) ending() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != running || c.killed || c.pidfd < 0 {
		return true
	}
	stat, err := readStat(c.rec.PID)
	return err != nil && !outOfDescriptors(err) || stat.exiting
}

// killLeft kills the process that a runtime has started before it was killed itself.
func (e *execution) killLeft() {
	_, file := e.files()
	if pid, err := readPIDFile(file); err == nil {
		e.c.killExec(pid)
	}
}

// killExec kills an exec'd process and all of its session.
func (c *container) killExec(pid int) {
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	leader, ok := c.execSession(pid)
	if !ok {
		leader = pid
	}
	killSession(ctx, leader, c.rec.Request.CgroupProcs)
}

// execSession is the session of an exec'd process. runc makes the process the
// leader of one; crun leaves it in that of a process of its own, which has
// ended. The session of the container, or ours, it is never.
func (c *container) execSession(pid int) (leader int, ok bool) {
	c.mu.Lock()
	first := c.rec.PID
	c.mu.Unlock()
	s, err := readStat(pid)
	ok = err == nil && s.session > 0 && !inSession(first, s.session) && !inSession(os.Getpid(), s.session)
	return s.session, ok
}

func inSession(pid, session int) bool {
	s, err := readStat(pid)
	return err == nil && s.session == session
}

// beginExec counts an exec call of a container that runs, and returns the
// beginning of the names of its files.
func (c *container) beginExec() (base string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != running || c.pidfd < 0 {
		return "", fmt.Errorf("container %s does not run: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	c.execs.Add(1)
	c.execSeq++
	return filepath.Join(c.dir, fmt.Sprintf("exec-%d-%d", time.Now().UnixNano(), c.execSeq)), nil
}

// execFiles tells which of the received files is which; nil is a null device.
func execFiles(req *supervisor.ExecCall, files []*os.File) (stdio [3]*os.File, err error) {
	n := 0
	for i, has := range []bool{req.HasStdin, req.HasStdout, req.HasStderr} {
		if !has {
			continue
		}
		if n == len(files) {
			return stdio, fmt.Errorf("exec in container %s: %d files are too few: %w", req.ID, len(files), errdefs.ErrInvalidArgument)
		}
		stdio[i] = files[n]
		n++
	}
	if n != len(files) {
		return stdio, fmt.Errorf("exec in container %s: %d files too many: %w", req.ID, len(files)-n, errdefs.ErrInvalidArgument)
	}
	if len(req.Process) == 0 {
		return stdio, fmt.Errorf("exec in container %s: no process given: %w", req.ID, errdefs.ErrInvalidArgument)
	}
	return stdio, nil
}
