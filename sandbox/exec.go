package sandbox

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/supervisor"
)

const (
	// ExecOutputLimit is how much of each output stream Exec returns, in bytes (CRI ExecSyncResponse).
	ExecOutputLimit = 16 << 20
	// execDrain is how long Exec reads on after its process has ended: a child
	// in the background may hold the pipes open for ever.
	execDrain = 200 * time.Millisecond
)

// ExecResult is what a process wrote and how it ended.
type ExecResult struct {
	Stdout, Stderr []byte
	ExitCode       int // 128+n after signal n
}

// Exec runs a process in a container and returns when it has ended. Of each
// stream the first [ExecOutputLimit] bytes are kept, the rest is read and
// dropped; the streams belong to the container's root, whom ids says, so that
// its processes can open /dev/stdout. When ctx ends first, the process, its
// session and all that descends from those are killed and ctx's error returned. What has left the session, and whose
// parents have all ended, cannot be told from the container's own processes and lives on.
func (h *Host) Exec(ctx context.Context, id string, process *specs.Process, ids IDMap) (ExecResult, error) {
	spec, err := json.Marshal(process)
	if err != nil {
		return ExecResult{}, fmt.Errorf("encoding the process: %w", err)
	}
	var out, errOut capture
	defer out.abandon()
	defer errOut.abandon()
	if err := out.start(ids); err != nil {
		return ExecResult{}, err
	}
	if err := errOut.start(ids); err != nil {
		return ExecResult{}, err
	}
	code, err := h.sup.Exec(ctx, supervisor.ExecRequest{ID: id, Process: spec, Stdout: out.w, Stderr: errOut.w})
	if err != nil && ctx.Err() == nil {
		err = withLastWord(err, errOut.finish(time.Now().Add(lastWordTime)))
	}
	if err != nil {
		return ExecResult{}, err
	}
	drained := time.Now().Add(execDrain) // for both: who holds one usually holds the other
	return ExecResult{Stdout: out.finish(drained), Stderr: errOut.finish(drained), ExitCode: code}, nil
}

// lastWordTime is how long an OCI runtime's last word may take after its end.
const lastWordTime = 100 * time.Millisecond

// withLastWord adds what the OCI runtime said of its failure where its error was
// to go that would have been the process': the C and Go libraries know no other.
func withLastWord(err error, said []byte) error {
	line, _, _ := strings.Cut(strings.TrimSpace(string(said[:min(len(said), 200)])), "\n")
	if line == "" || errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err) {
		return err
	}
	for _, words := range []string{"resource temporarily unavailable", "failed to create new os thread"} {
		if strings.Contains(strings.ToLower(line), words) {
			return fmt.Errorf("%w: %s: it may start no more processes or threads: %w", err, line, errdefs.ErrResourceExhausted)
		}
	}
	return fmt.Errorf("%w: %q", err, line)
}

// capture reads one stream of a process into memory, in a goroutine that
// finish or abandon waits for.
type capture struct {
	r, w *os.File
	done sync.WaitGroup
	data []byte
}

func (c *capture) start(ids IDMap) error {
	// Not os.Pipe: the end that the process gets must not be O_NONBLOCK.
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("making a pipe: %w", err)
	}
	if err := unix.SetNonblock(p[0], true); err != nil {
		return fmt.Errorf("making a pipe: %w", err)
	}
	c.r, c.w = os.NewFile(uintptr(p[0]), "exec output"), os.NewFile(uintptr(p[1]), "exec output")
	if ids != (IDMap{}) {
		if err := c.w.Chown(int(ids.UID), int(ids.GID)); err != nil {
			return err
		}
	}
	c.done.Go(func() {
		c.data, _ = io.ReadAll(io.LimitReader(c.r, ExecOutputLimit)) // an error is the drain's deadline or Close
		_, _ = io.Copy(io.Discard, c.r)
	})
	return nil
}

func (c *capture) finish(drained time.Time) []byte {
	_ = c.w.Close()
	_ = c.r.SetReadDeadline(drained)
	c.done.Wait()
	return c.data
}

func (c *capture) abandon() {
	if c.r == nil {
		return
	}
	_ = c.w.Close()
	_ = c.r.Close()
	c.done.Wait()
}
