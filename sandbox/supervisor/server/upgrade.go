package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/supervisor"
	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/oci"
	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/reaper"
)

const (
	// standstill is how long what is under way may take to come to its end when
	// the program is to be replaced, during which no call is begun: a probe must
	// not fail by it. If it takes longer all goes on, and the client tries later.
	standstill = 400 * time.Millisecond
	// checkTimeout bounds what the other program needs to read the description of a handover.
	checkTimeout = 10 * time.Second
)

// upgrade has the process become another program, whose open file comes with
// the call, if it is another one than this:
//
//	same ──▶ answer, nothing done
//	check ──▶ standstill ──▶ describe ──▶ execve ──▶ adopt with the handover ──▶ the new program answers
//	  └─ refused └─ too long: Unavailable    └─ fails: nothing has changed
//
// Nothing is under way when the program is replaced but the waiting for exec'd
// processes, whose connections are handed over; connections of watch and hold
// break, and their clients come again. A crash from here on is like any other.
func (s *Server) upgrade(ctx context.Context, req supervisor.UpgradeRequest, call *call) (any, error) {
	if len(call.files) != 1 || req.Path == "" {
		return nil, fmt.Errorf("upgrade to %q: %d files instead of one: %w", req.Path, len(call.files), errdefs.ErrInvalidArgument)
	}
	program := call.files[0]
	same, err := sameProgram(program)
	if err != nil {
		return nil, fmt.Errorf("upgrade to %s: %w", req.Path, err)
	}
	if same {
		return supervisor.UpgradeAnswer{Version: s.version}, nil
	}
	s.gate.Leave() // this call is not to be waited for
	defer s.gate.Join()
	if !s.upgrading.TryLock() {
		return nil, fmt.Errorf("upgrade to %s: another one is under way: %w", req.Path, errdefs.ErrUnavailable)
	}
	defer s.upgrading.Unlock()
	if err := s.ready(); err != nil {
		return nil, fmt.Errorf("upgrade to %s: %w", req.Path, err)
	}
	checked, err := s.check(ctx, program, req.Path)
	if err != nil {
		return nil, fmt.Errorf("upgrade to %s, which does not take over: %w: %w", req.Path, err, refusal(err))
	}
	return nil, fmt.Errorf("upgrade to %s: %w", req.Path, s.become(ctx, program, req.Path, checked, call))
}

// ready is an error when there is what an upgrade would have to wait for.
func (s *Server) ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stopping:
		return fmt.Errorf("the supervisor ends: %w", errdefs.ErrUnavailable)
	case s.attached > 0:
		return fmt.Errorf("%d clients are attached to containers: %w", s.attached, errdefs.ErrUnavailable)
	}
	return nil
}

// become brings all to a standstill and executes the program. It returns only
// with an error, and then all goes on.
func (s *Server) become(ctx context.Context, program *os.File, path string, checked *checked, call *call) error {
	signals := noteSignals()
	defer signals.stop()
	if !s.gate.Shut(standstill) {
		return fmt.Errorf("calls or OCI runtimes take longer than %s: %w", standstill, errdefs.ErrUnavailable)
	}
	defer s.gate.Open()
	if !s.pool.Freeze(standstill) {
		return fmt.Errorf("a write to a log takes longer than %s: %w", standstill, errdefs.ErrUnavailable)
	}
	defer s.pool.Thaw()
	if err := s.ready(); err != nil {
		return err
	}
	h := s.describe(rawFD(call.conn))
	for _, c := range h.Containers {
		if !slices.Contains(checked.containers, c.ID) {
			return fmt.Errorf("container %s was started meanwhile: %w", c.ID, errdefs.ErrUnavailable)
		}
		if !exists(filepath.Join(s.containersDir(), c.ID, recordFile)) { // which the check takes for a deletion
			return fmt.Errorf("container %s has lost its record: %w", c.ID, errdefs.ErrUnavailable)
		}
	}
	now, err := program.Stat()
	if err != nil {
		return err
	}
	if now.Size() != checked.program.Size() || !now.ModTime().Equal(checked.program.ModTime()) {
		return fmt.Errorf("the file was written to after its check: %w", errdefs.ErrUnavailable)
	}
	if !signals.leave() || ctx.Err() != nil {
		return fmt.Errorf("the supervisor, or its caller, is to end: %w", errdefs.ErrUnavailable)
	}
	s.log.Info("Supervisor becomes another program", "path", path, "version", s.version, "containers", len(h.Containers), "execs", len(h.Execs))
	err = h.become(program, []string{path, "--dir", s.dir})
	s.log.Error("Supervisor stays as it is", "err", err)
	return fmt.Errorf("%w: %w", err, refusal(err))
}

// describe describes what is handed over. The gate is shut, or it is for a check only.
func (s *Server) describe(call int) *handover {
	h := &handover{
		Version: handoverVersion, From: s.version,
		Lock: fileFD(s.lock), Listener: rawFD(s.listener), Call: call,
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	h.Exits = s.exits
	for _, c := range s.containers {
		if held, ok := c.describe(); ok {
			held.Number = c.number
			h.Containers = append(h.Containers, held)
		}
	}
	for e := range s.execs {
		held := heldExec{Container: e.c.id, PID: e.pid, Files: e.base, Call: rawFD(e.call.conn)}
		if x := e.exit.Load(); x != nil {
			code := x.Code()
			held.ExitCode = &code
		}
		h.Execs = append(h.Execs, held)
	}
	return h
}

// describe is nothing for one that is half made, which a successor deletes.
func (c *container) describe() (heldContainer, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := heldContainer{
		ID: c.id, PIDFD: c.pidfd, Log: -1, Input: fileFD(c.input), Outputs: [2]heldOutput{{FD: -1}, {FD: -1}},
		Killed: c.killed, RuntimeGone: c.runtimeGone.Load(), Exit: c.exit,
	}
	if c.file != nil {
		h.Log = c.file.FD()
	}
	for _, copier := range c.copiers {
		h.Outputs[copier.Number()] = heldOutput{FD: copier.Src(), Finite: copier.Finite()}
	}
	return h, c.state == running || c.state == exited
}

// sameProgram says whether the file has the program that runs.
func sameProgram(f *os.File) (bool, error) {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return false, err
	}
	defer self.Close()
	mine, err := self.Stat()
	if err != nil {
		return false, err
	}
	other, err := f.Stat()
	if err != nil {
		return false, err
	}
	if !other.Mode().IsRegular() {
		return false, fmt.Errorf("not a regular file: %w", errdefs.ErrInvalidArgument)
	}
	if os.SameFile(mine, other) {
		return true, nil
	}
	if mine.Size() != other.Size() {
		return false, nil
	}
	const block = 1 << 20
	a, b := io.NewSectionReader(self, 0, mine.Size()), io.NewSectionReader(f, 0, other.Size())
	bufA, bufB := make([]byte, block), make([]byte, block)
	for {
		n, err := io.ReadFull(a, bufA)
		m, err2 := io.ReadFull(b, bufB)
		if !bytes.Equal(bufA[:n], bufB[:m]) {
			return false, nil
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return true, nil
		}
		if err := errors.Join(err, err2); err != nil {
			return false, err
		}
	}
}

// refusal is the kind of an error of checking or executing the other program: one that is
// still being written (ETXTBSY, execve(2)), what is used up, and this one's end, are of the moment.
func refusal(err error) error {
	if errors.Is(err, unix.ETXTBSY) || notNow(err) || errors.Is(err, context.Canceled) {
		return errdefs.ErrUnavailable
	}
	return errdefs.ErrFailedPrecondition
}

// checked is what the other program has agreed to.
type checked struct {
	program    os.FileInfo // as it was then
	containers []string
}

// check has the other program say, in a process of its own, whether it
// understands a handover like this one's.
func (s *Server) check(ctx context.Context, program *os.File, path string) (*checked, error) {
	info, err := program.Stat()
	if err != nil {
		return nil, err
	}
	h := s.describe(-1)
	agreed := &checked{program: info}
	for _, c := range h.Containers {
		agreed.containers = append(agreed.containers, c.ID)
	}
	description, err := h.file()
	if err != nil {
		return nil, err
	}
	defer description.Close()
	null, err := s.runner.Null()
	if err != nil {
		return nil, err
	}
	defer null.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	runtime.LockOSThread() // whose end would be taken for the parent's
	defer runtime.UnlockOSThread()
	pid, done, err := s.reaper.Start("/proc/self/fd/4", []string{path, "--dir", s.dir, "--check", "3"}, &syscall.ProcAttr{
		Dir: "/", Env: os.Environ(),
		Files: []uintptr{uintptr(fileFD(null)), uintptr(fileFD(null)), uintptr(fileFD(w)), uintptr(fileFD(description)), uintptr(fileFD(program))},
		Sys:   &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL},
	})
	_ = w.Close()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	var exit reaper.Exit
	select {
	case exit = <-done:
	case <-ctx.Done():
		s.reaper.KillGroup(pid)
		return nil, fmt.Errorf("its check has no end: %w: %w", context.Cause(ctx), ctx.Err())
	}
	if code := exit.Code(); code != 0 {
		said, _, _ := strings.Cut(oci.ReadNow(r), "\n")
		return nil, fmt.Errorf("its check ended with %d: %s", code, said)
	}
	return agreed, nil
}
