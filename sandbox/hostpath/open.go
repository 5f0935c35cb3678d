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

// Opener opens paths. It is safe for concurrent use.
type Opener struct {
	command []string // of a process that calls [Serve], the path being its last argument

	mu    sync.Mutex
	under map[string]*opening // by path, guarded by mu
}

// NewOpener returns an Opener whose processes run the command, with the path
// as one more argument and a socket for [Serve] as descriptor [Socket].
func NewOpener(command ...string) *Opener {
	return &Opener{command: command, under: make(map[string]*opening)}
}

// opening is a process that opens a path.
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
		op, ours, err := o.begin(path)
		if err != nil {
			return nil, err
		}
		select {
		case <-op.ended:
		case <-ctx.Done():
			if ours {
				o.abandon(op)
			}
			return nil, fmt.Errorf("opening %s: its file system does not answer: %w", path, context.Cause(ctx))
		}
		if ours && op.err != nil {
			return nil, op.err
		}
		if ours {
			return newPath(path, op.file)
		}
	}
}

// begin returns the process that opens path, and whether the caller has started it.
func (o *Opener) begin(path string) (op *opening, ours bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if op := o.under[path]; op != nil {
		return op, false, nil
	}
	if len(o.under) >= maxHung {
		return nil, false, fmt.Errorf("opening %s: %d other paths are being opened, whose file systems do not answer: %w", path, len(o.under), errdefs.ErrUnavailable)
	}
	op, socket, cmd, err := o.start(path)
	if err != nil {
		return nil, false, fmt.Errorf("opening %s: %w", path, err)
	}
	o.under[path] = op
	go o.finish(path, op, socket, cmd)
	return op, true, nil
}

// Socket is the descriptor on which a process of the Opener passes its result.
const Socket = 3

func (o *Opener) start(path string) (*opening, *net.UnixConn, *exec.Cmd, error) {
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
	cmd := exec.Command(o.command[0], append(o.command[1:len(o.command):len(o.command)], path)...)
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
func (o *Opener) finish(path string, op *opening, conn *net.UnixConn, cmd *exec.Cmd) {
	op.file, op.err = receive(conn)
	_ = conn.Close()
	if err := cmd.Wait(); err != nil && op.err == nil {
		op.drop()
		op.file, op.err = nil, err
	}
	if errors.Is(op.err, io.EOF) {
		op.err = fmt.Errorf("opening %s: %s ended without a result: %v", path, o.command[0], cmd.ProcessState)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.under, path)
	close(op.ended)
	if op.abandoned {
		op.drop()
	}
}

// answer is what a process says: of a success only the descriptor counts.
type answer struct {
	Op, Path string
	Errno    int
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
	var a answer
	if err := json.Unmarshal(data[:n], &a); err != nil {
		return nil, fmt.Errorf("reading what was opened: %w", err)
	}
	return nil, &fs.PathError{Op: a.Op, Path: a.Path, Err: syscall.Errno(a.Errno)}
}

// Serve is the process of an [Opener]: it opens path and passes the descriptor, or the error, on.
func Serve(path string) error {
	var rights []byte
	var a answer
	fd, err := open(path)
	if err == nil {
		rights = unix.UnixRights(fd)
	} else if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
		a.Op, a.Path = pe.Op, pe.Path
		errno := syscall.EIO
		_ = errors.As(err, &errno)
		a.Errno = int(errno)
	}
	data, err := json.Marshal(a)
	if err != nil {
		return err
	}
	return unix.Sendmsg(Socket, data, rights, nil, 0)
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
