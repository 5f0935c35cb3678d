package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/supervisor"
	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/logcopy"
	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/oci"
	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/reaper"
	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/wire"
)

const (
	// commitWait is how long a client may take to confirm that it knows of its container.
	commitWait = 10 * time.Second
	// runGrace is how long an OCI runtime that makes a container may go on after
	// the call's end: killed in the middle it leaves what it alone could clean up.
	runGrace = 2 * time.Second
	// undoTimeout bounds the OCI runtime's deletion of a container that failed.
	undoTimeout = 30 * time.Second
)

// run starts a container and answers. The container stays only when the client
// has confirmed the answer: one that hung up just then believes it undone.
func (s *Server) run(ctx context.Context, req supervisor.RunRequest, call *call) error {
	if err := checkRun(&req); err != nil {
		return err
	}
	c, err := s.reserve(ctx, req.ID)
	if err != nil {
		return err
	}
	defer c.unlock()
	c.setPending(true)
	err = c.start(ctx, req)
	if err == nil {
		c.mu.Lock()
		pid := c.rec.PID
		c.mu.Unlock()
		if err = call.answer(supervisor.RunAnswer{PID: pid}); err == nil {
			if err = call.awaitCommit(ctx); err == nil {
				c.setPending(false)
				return nil
			}
		}
	}
	if uerr := c.undo(); uerr != nil {
		c.log.Error("Container that failed to start is left", "err", uerr)
		err = fmt.Errorf("%w; undoing it: %w", err, uerr)
	}
	return err
}

func (c *container) setPending(pending bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pending = pending
}

// awaitCommit waits for the client's word that it has the answer.
func (c *call) awaitCommit(ctx context.Context) error {
	timeout := time.NewTimer(commitWait)
	defer timeout.Stop()
	select {
	case <-c.committed:
	case <-ctx.Done():
		select {
		case <-c.committed: // and hung up after it
		default:
			return context.Cause(ctx)
		}
	case <-timeout.C:
		return errors.New("caller did not confirm")
	}
	return nil
}

// start runs the OCI runtime. On an error everything is left to undo.
func (c *container) start(ctx context.Context, req supervisor.RunRequest) error {
	if err := os.RemoveAll(c.dir); err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	if err := os.Mkdir(c.dir, 0o700); err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	c.mu.Lock()
	c.rec = record{Version: recordVersion, BootID: c.srv.bootID, Request: req}
	c.rec.countOOMKills()
	c.mu.Unlock()
	if err := errors.Join(writeFile(c.dir, recordFile, c.rec), reserveExit(c.dir)); err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	file, err := logcopy.OpenFile(req.LogDir, req.LogPath, req.LogMax, c.log)
	if err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	c.mu.Lock()
	c.file = file
	c.mu.Unlock()
	io, err := c.makeStdio()
	if err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	err = c.launch(ctx, io)
	if err != nil {
		io.closeAll()
		return err
	}
	return c.copyOutput(io)
}

// launch runs the OCI runtime's run --detach and takes its process over.
func (c *container) launch(ctx context.Context, io *stdio) error {
	defer io.closeTheirs()
	defer c.srv.reaper.Hold()() // the container may end before its pid file is read
	req := &c.rec.Request
	pidFile := filepath.Join(c.dir, "pid")
	args := []string{"--detach", "--bundle", req.Bundle, "--pid-file", pidFile}
	if io.console != nil {
		args = append(args, "--console-socket", io.console.path())
	}
	cmd := c.command("run", append(args, c.id)...)
	cmd.Grace = runGrace
	cmd.Stdin, cmd.Stdout, cmd.Stderr = io.stdin, io.stdout, io.stderr
	if err := c.srv.runner.Run(ctx, cmd); err != nil {
		var failed *oci.Error
		if errors.As(err, &failed) && failed.Message == "" && io.err != nil {
			failed.Message = oci.ReadNow(io.err) // its stderr was the container's
		}
		return err
	}
	pid, err := readPIDFile(pidFile)
	if err != nil {
		return err
	}
	if io.console != nil {
		if io.out, err = io.console.receive(ctx); err != nil {
			return err
		}
	}
	return c.own(pid)
}

// own takes over the process: its exit, its pidfd, its place in the record.
func (c *container) own(pid int) error {
	stat, err := readStat(pid)
	if outOfDescriptors(err) {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	pidfd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK) // under the poller, should another program not be its parent
	if outOfDescriptors(err) || errors.Is(err, unix.ENOMEM) {
		return fmt.Errorf("container %s: watching its process %d: %w", c.id, pid, err)
	}
	if err != nil {
		pidfd = -1 // it has ended, and been reaped
	}
	c.mu.Lock()
	c.rec.PID, c.rec.StartTime, c.pidfd = pid, stat.startTime, pidfd
	c.mu.Unlock()
	if !c.srv.reaper.Notify(pid, c.ended) {
		return fmt.Errorf("container %s: its process %d is not a child of the supervisor", c.id, pid)
	}
	return writeFile(c.dir, recordFile, c.rec)
}

// copyOutput begins the copying of the container's output and lets its exit be handled.
func (c *container) copyOutput(io *stdio) error {
	if io.out != nil && c.rec.Request.Terminal {
		var err error
		if io.in, err = wire.Duplicate(io.out); err != nil {
			io.closeAll()
			return err
		}
	}
	var copiers []*logcopy.Copier
	for _, s := range []struct {
		name string
		src  *os.File
	}{{"stdout", io.out}, {"stderr", io.err}} {
		if s.src == nil {
			continue
		}
		copier, err := logcopy.Start(s.src, logcopy.Key{ID: c.id, Stream: s.name}, c.file, c.srv.pool, nil, false, c.log)
		if err != nil {
			io.closeAll()
			return err
		}
		copiers = append(copiers, copier)
	}
	c.mu.Lock()
	c.copiers, c.input = copiers, io.in
	c.state = running
	early := c.early
	c.mu.Unlock()
	c.srv.inputs.tell()
	if early != nil {
		c.handle(*early)
	}
	return nil
}

// ended is called by the reaper.
func (c *container) ended(e reaper.Exit) {
	exit := supervisor.Exit{ID: c.id, PID: e.PID, Code: e.Code(), At: e.At, OOM: c.diedOfOOM(e.Code())}
	c.mu.Lock()
	state := c.state
	if state == starting {
		c.early = &exit
	}
	c.mu.Unlock()
	if state == running {
		c.handle(exit)
	}
}

// command is one of the container's OCI runtime. Execs of one container share a
// turn; what ends it, or changes it, does not wait behind however many of them.
func (c *container) command(name string, args ...string) oci.Command {
	r := c.rec.Request.Runtime
	turn := c.id
	if name != "exec" {
		turn += " " + name
	}
	return oci.Command{
		Path: r.Path, Root: r.Root, Options: r.Options, SystemdCgroup: r.SystemdCgroup, Name: name, Args: args,
		Turn: turn, Moves: name == "run" || name == "exec",
		LogFile: filepath.Join(c.dir, fmt.Sprintf("%s-%d.log", name, time.Now().UnixNano())),
	}
}

// undo makes the container, of which anything may be there, as if it had never
// been. Its lock is held. On an error it stays, and undo may be called again.
func (c *container) undo() error {
	ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
	defer cancel()
	c.mu.Lock()
	started := c.state != starting
	c.mu.Unlock()
	if started {
		return c.destroy(ctx)
	}
	if c.rec.PID != 0 {
		c.unstart()
	}
	if err := killCgroup(ctx, c.rec.Request.CgroupProcs); err != nil {
		return err
	}
	if err := c.deleteFromRuntime(ctx); err != nil {
		return err
	}
	return c.clear()
}

func readPIDFile(path string) (int, error) {
	data, err := readBounded(path, 64)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("OCI runtime wrote no pid file %s", path)
	}
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("OCI runtime wrote %q to the pid file", data)
	}
	return pid, nil
}
