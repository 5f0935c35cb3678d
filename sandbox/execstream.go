package sandbox

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/supervisor"
)

// sizeWait is how long a session with a terminal waits for its size before it
// starts: clients send that right after they have connected, and a program
// that looks once, as it begins, should not find 0 x 0.
const sizeWait = 50 * time.Millisecond

// ExecStream runs a process in a container, connected with the client's
// streams, and returns its exit code when it has ended and what it wrote has
// been taken. A child that holds the output open is not waited for. A client
// that reads slowly slows the process, and nobody else.
//
// When ctx ends first, or the client takes no output any more, all that the
// process has started in its session is killed, and the error is ctx's cause or
// that of the client's stream. Then, and with Stdin always, a Read or Write
// of the client's streams may still be under way when ExecStream returns. It is
// the last one, and ends when whoever made the streams ends it.
func (h *Host) ExecStream(
	ctx context.Context, id string, process *specs.Process, ids IDMap, s Streams,
) (exitCode int, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	x := &execSession{streams: s, gone: cancel}
	defer x.close()
	req := supervisor.ExecRequest{ID: id, Terminal: process.Terminal}
	if process.Terminal {
		process = x.sized(ctx, process)
		req.Console = x.console
	} else if err := x.pipes(ids, &req); err != nil {
		return 0, err
	}
	if req.Process, err = json.Marshal(process); err != nil {
		return 0, fmt.Errorf("encoding the process: %w", err)
	}
	if exitCode, err = h.sup.Exec(ctx, req); err != nil {
		return 0, err
	}
	if err := drain(ctx, x.outputs); err != nil {
		return 0, err
	}
	return exitCode, nil
}

// execSession is the daemon's side of one session.
type execSession struct {
	streams Streams
	gone    context.CancelCauseFunc // ends the session: the client has gone
	files   []*os.File              // both ends of pipes, or the terminal
	outputs []*output
	resizer *resizer // nil without a terminal
}

// close ends all that belongs to the session but a Read or Write of the client's.
func (x *execSession) close() {
	if x.resizer != nil {
		x.resizer.stop()
	}
	for _, f := range x.files {
		_ = f.Close() // what the supervisor's client has closed before is no matter
	}
}

// pipes makes the pipes of a session without a terminal. The ends that the
// process gets belong to the container's root.
func (x *execSession) pipes(ids IDMap, req *supervisor.ExecRequest) error {
	if x.streams.Stdin != nil {
		theirs, ours, err := x.pipe(ids, true)
		if err != nil {
			return err
		}
		req.Stdin = theirs
		go feed(ours, x.streams.Stdin, x.gone, func() { _ = ours.Close() })
	}
	for _, o := range []struct {
		to     io.Writer
		theirs **os.File
	}{{x.streams.Stdout, &req.Stdout}, {x.streams.Stderr, &req.Stderr}} {
		if o.to == nil {
			continue
		}
		theirs, ours, err := x.pipe(ids, false)
		if err != nil {
			return err
		}
		*o.theirs = theirs
		x.outputs = append(x.outputs, startOutput(ours, o.to, x.gone))
	}
	return nil
}

// pipe makes a pipe; our end is non-blocking, theirs must not be.
func (x *execSession) pipe(ids IDMap, input bool) (theirs, ours *os.File, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("making a pipe: %w", err)
	}
	own, other := p[0], p[1]
	if input {
		own, other = other, own
	}
	err = unix.SetNonblock(own, true)
	ours, theirs = os.NewFile(uintptr(own), "exec stream"), os.NewFile(uintptr(other), "exec stream")
	x.files = append(x.files, ours, theirs)
	if err == nil && ids != (IDMap{}) {
		err = theirs.Chown(int(ids.UID), int(ids.GID))
	}
	if err != nil {
		return nil, nil, fmt.Errorf("making a pipe: %w", err)
	}
	return theirs, ours, nil
}

// sized returns the process with the size of its terminal, if the client tells
// it soon, and sets the sizes that follow.
func (x *execSession) sized(ctx context.Context, process *specs.Process) *specs.Process {
	size := awaitSize(ctx, x.streams.Resize)
	x.resizer = startResizer(x.streams.Resize, size)
	if size == (TerminalSize{}) {
		return process
	}
	p := *process
	p.ConsoleSize = &specs.Box{Width: uint(size.Width), Height: uint(size.Height)}
	return &p
}

// console takes the master of the session's terminal.
func (x *execSession) console(master *os.File) {
	x.files = append(x.files, master)
	x.resizer.terminal <- master
	if x.streams.Stdin != nil {
		go feed(master, x.streams.Stdin, x.gone, func() {}) // no half-close: the terminal stays, and nobody types
	}
	out := x.streams.Stdout
	if out == nil {
		out = io.Discard // or the terminal fills and the process waits
	}
	x.outputs = append(x.outputs, startOutput(master, out, x.gone))
}
