package hostpath

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// timeout bounds an opening whose caller has set no bound.
	timeout = 2 * time.Minute
	// maxHung is how many processes may hang at a time: as many paths, on a
	// node with more pods than that whose server is away. Each has some MiB.
	maxHung = 128
)

// Opener opens paths, and does other work with them. It is safe for concurrent use.
type Opener struct {
	command string // of its processes

	mu    sync.Mutex
	under map[job]*opening // guarded by mu
}

// job is what a process is to do: it is its arguments.
type job struct{ kind, of string }

// NewOpener returns an Opener whose processes run the command with the
// arguments -open and a path, and call [Serve] with that, or -do and a text,
// which is for [ServeWork]; and with a socket as descriptor [Socket].
func NewOpener(command string) *Opener {
	return &Opener{command: command, under: make(map[job]*opening)}
}

// opening is a process that does a job.
type opening struct {
	process *os.Process
	ended   chan struct{} // closed when it has ended

	file      *os.File // with err the result, once it has ended
	err       error
	abandoned bool // by its caller, so that nobody takes file; guarded by Opener.mu
}

// Open opens a path and makes what is missing of it as directories, of mode
// 0755 less the umask. When ctx ends first, which is all that ends the wait
// for a file system that hangs, its error is returned. While that goes on, a
// second Open of the path waits with the first's process.
func (o *Opener) Open(ctx context.Context, path string) (*Path, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		if p, err := cached(path); err == nil {
			return p, nil
		}
		file, ours, err := o.try(ctx, job{"-open", path}, "opening "+path)
		if err != nil {
			return nil, err
		}
		if ours {
			return newPath(path, file)
		}
	}
}

// try waits for the end of the process that does a job. If there was none it
// is ours, and with it the file that it passes. what it does begins errors.
func (o *Opener) try(ctx context.Context, j job, what string) (file *os.File, ours bool, err error) {
	op, ours, err := o.begin(j)
	if err != nil {
		return nil, false, fmt.Errorf("%s: %w", what, err)
	}
	select {
	case <-op.ended:
	case <-ctx.Done():
		if ours {
			o.abandon(op)
		}
		return nil, false, fmt.Errorf("%s: its file system does not answer: %w", what, context.Cause(ctx))
	}
	if !ours {
		return nil, false, nil
	}
	return op.file, true, op.err
}

// begin returns the process that does a job, and whether the caller has started it.
func (o *Opener) begin(j job) (op *opening, ours bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if op := o.under[j]; op != nil {
		return op, false, nil
	}
	if len(o.under) >= maxHung {
		return nil, false, fmt.Errorf("%d other paths are being opened, whose file systems do not answer: %w", len(o.under), errdefs.ErrUnavailable)
	}
	op, socket, cmd, err := o.start(j)
	if err != nil {
		return nil, false, err
	}
	o.under[j] = op
	go o.finish(j, op, socket, cmd)
	return op, true, nil
}

// Socket is the descriptor on which a process of the Opener passes its result.
const Socket = 3

func (o *Opener) start(j job) (*opening, *net.UnixConn, *exec.Cmd, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, nil, os.NewSyscallError("socketpair", err)
	}
	mine, theirs := os.NewFile(uintptr(pair[0]), "opener"), os.NewFile(uintptr(pair[1]), "opener")
	defer mine.Close() // FileConn has a duplicate
	defer theirs.Close()
	conn, err := net.FileConn(mine)
	if err != nil {
		return nil, nil, nil, err
	}
	cmd := exec.Command(o.command, j.kind, j.of)
	cmd.Dir, cmd.Env, cmd.ExtraFiles = "/", []string{}, []*os.File{theirs}
	if err := cmd.Start(); err != nil {
		_ = conn.Close()
		return nil, nil, nil, err
	}
	return &opening{process: cmd.Process, ended: make(chan struct{})}, conn.(*net.UnixConn), cmd, nil
}

// abandon kills the process, which one that hangs notices when its file system answers.
func (o *Opener) abandon(op *opening) {
	_ = op.process.Kill()
	o.mu.Lock()
	defer o.mu.Unlock()
	op.abandoned = true
	select {
	case <-op.ended:
		op.drop()
	default:
	}
}

func (op *opening) drop() {
	if op.file != nil {
		_ = op.file.Close()
	}
}

// finish takes the result. The end of the process, however it ends, is seen by
// the end of its socket, for which no thread waits.
func (o *Opener) finish(j job, op *opening, conn *net.UnixConn, cmd *exec.Cmd) {
	op.file, op.err = receive(conn)
	_ = conn.Close()
	if err := cmd.Wait(); err != nil && op.err == nil {
		op.drop()
		op.file, op.err = nil, err
	}
	if errors.Is(op.err, io.EOF) {
		op.err = fmt.Errorf("opening %s: %s ended without a result: %v", j.of, o.command, cmd.ProcessState)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.under, j)
	close(op.ended)
	if op.abandoned {
		op.drop()
	}
}

// failure is what a process says that does not pass a file: an error's text, and what [errors.Is] finds in it.
type failure struct {
	Text  string
	Kind  int // in kinds, -1 for none
	Errno syscall.Errno
}

var kinds = []error{errdefs.ErrInvalidArgument, errdefs.ErrFailedPrecondition, errdefs.ErrNotImplemented, errdefs.ErrNotFound}

const maxText = 4 << 10 // of an error, in bytes

func newFailure(err error) failure {
	f := failure{Text: err.Error(), Kind: slices.IndexFunc(kinds, func(kind error) bool { return errors.Is(err, kind) })}
	if len(f.Text) > maxText {
		f.Text = f.Text[:maxText]
	}
	_ = errors.As(err, &f.Errno)
	return f
}

func (f failure) Error() string { return f.Text }

// Unwrap returns what the error was, as far as it crosses the socket.
func (f failure) Unwrap() (list []error) {
	if f.Kind >= 0 && f.Kind < len(kinds) {
		list = append(list, kinds[f.Kind])
	}
	if f.Errno != 0 {
		list = append(list, f.Errno)
	}
	return list
}

func receive(conn *net.UnixConn) (*os.File, error) {
	data, oob := make([]byte, 32<<10), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := conn.ReadMsgUnix(data, oob)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, io.EOF
	}
	if messages, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil && len(messages) == 1 {
		if fds, err := unix.ParseUnixRights(&messages[0]); err == nil && len(fds) == 1 {
			return os.NewFile(uintptr(fds[0]), "opened"), nil
		}
	}
	var f failure
	if err := json.Unmarshal(data[:n], &f); err != nil {
		return nil, fmt.Errorf("reading what was opened: %w", err)
	}
	return nil, f
}

// Serve is the process of an [Opener]: it opens path and passes the descriptor, or the error, on.
func Serve(path string) error { return pass(open(path)) }

// pass sends a descriptor, or the error, to the Opener.
func pass(fd int, err error) error {
	if err == nil {
		return unix.Sendmsg(Socket, []byte("{}"), unix.UnixRights(fd), nil, 0)
	}
	data, err := json.Marshal(newFailure(err))
	if err != nil {
		return err
	}
	return unix.Sendmsg(Socket, data, nil, nil, 0)
}

func open(path string) (fd int, err error) {
	for range 2 {
		for {
			fd, err = unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
			if !errors.Is(err, unix.EINTR) {
				break
			}
		}
		if !errors.Is(err, unix.ENOENT) {
			break
		}
		if err := os.MkdirAll(path, 0o755); err != nil {
			return -1, err
		}
	}
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}
