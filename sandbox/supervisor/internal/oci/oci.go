package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/reaper"
)

const (
	// maxText bounds what is taken from a runtime's log or output for an error, in bytes.
	maxText = 4 << 10
	// maxLog is how much of the end of its log is searched for the message.
	maxLog = 32 << 10
	// killWait is how long a killed runtime may take to end before it is given up.
	killWait = 5 * time.Second
)

// env is what a runtime gets. runc, a Go program that lives for 10 ms, takes 7 %
// less processor time when its threads do not run beside each other; what it
// starts in a container does not see that.
var env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "GOMAXPROCS=1"}

// Runner runs runtime commands: so many at once that all are done soonest and
// none waits long for the processors, in turns.
type Runner struct {
	reaper    *reaper.Reaper
	queue     *queue
	null      *nullDevices
	migration *migration
}

const (
	slotsPerCPU = 8
	// slotTime is how long a command may keep its slot: one that hangs gets out
	// of the others' way.
	slotTime = time.Second
)

// NewRunner returns a Runner whose commands' exits r tells.
func NewRunner(r *reaper.Reaper) *Runner {
	slots := slotsPerCPU * runtime.NumCPU()
	return &Runner{reaper: r, queue: newQueue(slots, slots/2), null: newNullDevices(), migration: newMigration()}
}

func (r *Runner) slot(ctx context.Context, key string) (release func(), err error) {
	if err := r.queue.enter(ctx, key); err != nil {
		return nil, err
	}
	once := sync.OnceFunc(func() { r.queue.leave(key) })
	timer := time.AfterFunc(slotTime, once)
	return func() {
		timer.Stop()
		once()
	}, nil
}

// Command is one invocation: path --root ... name args.
type Command struct {
	Path, Root    string
	Options       []string // further global options
	SystemdCgroup bool
	Env           []string // beside the fixed one
	Name          string
	Args          []string
	LogFile       string // --log; made by the runtime, removed afterwards
	Turn          string // those with the same one wait for each other; not passed on
	Moves         bool   // it moves a process into a cgroup

	// Grace is how long after ctx's end the command may still come to its own
	// end, and Run return that, before it is killed.
	Grace time.Duration

	// Standard files of the runtime, which a detached container inherits; nil
	// is a null device, save that a nil Stderr is kept for the error's text.
	Stdin, Stdout, Stderr *os.File
}

// Error is a runtime command that failed.
type Error struct {
	Path, Name string
	Code       int
	Message    string // the runtime's own
}

func (e *Error) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("%s %s: exit status %d", filepath.Base(e.Path), e.Name, e.Code)
	}
	return fmt.Sprintf("%s %s: %s", filepath.Base(e.Path), e.Name, e.Message)
}

// Unwrap returns what the runtime had too little of, an errno, or nil.
func (e *Error) Unwrap() error { return usedUp(e.Message) }

// Run runs the command to its end. When ctx ends first, and c.Grace has passed,
// the command's process group is killed, with what has left it, and ctx's error returned.
func (r *Runner) Run(ctx context.Context, c Command) error {
	release, err := r.slot(ctx, c.Turn)
	if err != nil {
		return fmt.Errorf("waiting to run %s %s: %w", c.Path, c.Name, err)
	}
	defer release()
	if c.Moves {
		defer r.migration.begin()()
	}
	null, err := r.Null()
	if err != nil {
		return fmt.Errorf("running %s: %w", c.Path, err)
	}
	defer null.Close()
	stdin, stdout, stderr := or(c.Stdin, null), or(c.Stdout, null), c.Stderr
	var text tail
	if stderr == nil {
		if err := text.open(); err != nil {
			return fmt.Errorf("running %s: %w", c.Path, err)
		}
		defer text.close()
		stderr = text.w
	}
	if c.LogFile != "" {
		// The runtime would refuse to run, and so to delete what fills the disk. It writes to stderr as well.
		if f, err := os.OpenFile(c.LogFile, os.O_WRONLY|os.O_CREATE, 0o600); errors.Is(err, unix.ENOSPC) {
			c.LogFile = ""
		} else if err == nil {
			f.Close()
		}
		defer os.Remove(c.LogFile)
	}
	exit, err := r.run(ctx, c, []*os.File{stdin, stdout, stderr})
	if err != nil {
		return err
	}
	if exit.Code() == 0 {
		return nil
	}
	message := logged(c.LogFile)
	if message == "" {
		message = text.read()
	}
	return &Error{Path: c.Path, Name: c.Name, Code: exit.Code(), Message: message}
}

func (r *Runner) run(ctx context.Context, c Command, stdio []*os.File) (reaper.Exit, error) {
	fds := make([]uintptr, len(stdio))
	for i, f := range stdio {
		raw, err := f.SyscallConn() // not Fd(), which would make it blocking
		if err != nil {
			return reaper.Exit{}, fmt.Errorf("running %s: %w", c.Path, err)
		}
		if err := raw.Control(func(fd uintptr) { fds[i] = fd }); err != nil {
			return reaper.Exit{}, fmt.Errorf("running %s: %w", c.Path, err)
		}
	}
	argv := c.argv()
	pid, done, err := r.reaper.Start(c.Path, argv, &syscall.ProcAttr{
		Dir:   "/",
		Env:   slices.Concat(env, c.Env),
		Files: fds,
		// No Pdeathsig: killed in the middle a command leaves what nobody knows
		// of. The next supervisor waits for it instead.
		Sys: &syscall.SysProcAttr{Setpgid: true},
	})
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			return reaper.Exit{}, fmt.Errorf("OCI runtime %s: %w: install it or change the configured path: %w", c.Path, err, errdefs.ErrFailedPrecondition)
		}
		return reaper.Exit{}, fmt.Errorf("starting OCI runtime %s: %w", c.Path, err)
	}
	select {
	case e := <-done:
		return e, nil
	case <-ctx.Done():
	}
	grace := time.NewTimer(c.Grace)
	defer grace.Stop()
	select {
	case e := <-done:
		return e, nil
	case <-grace.C:
	}
	r.reaper.KillGroup(pid)
	stuck := time.NewTimer(killWait)
	defer stuck.Stop()
	select {
	case <-done:
		err := fmt.Errorf("running %s %s: %w", c.Path, c.Name, context.Cause(ctx))
		return reaper.Exit{}, errors.Join(err, killDetached(argv[1:]))
	case <-stuck.C:
		return reaper.Exit{}, fmt.Errorf("running %s %s: process %d does not end on SIGKILL: %w", c.Path, c.Name, pid, context.Cause(ctx))
	}
}

func (c Command) argv() []string {
	argv := []string{c.Path, "--root", c.Root}
	if c.LogFile != "" {
		argv = append(argv, "--log", c.LogFile, "--log-format", "json")
	}
	if c.SystemdCgroup {
		argv = append(argv, "--systemd-cgroup")
	}
	return append(append(append(argv, c.Options...), c.Name), c.Args...)
}

func or(f, other *os.File) *os.File {
	if f != nil {
		return f
	}
	return other
}

// logged returns the last error message in a runtime's JSON log, or "".
func logged(path string) string {
	if path == "" {
		return ""
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return ""
	} else if info.Size() > maxLog {
		_, _ = f.Seek(info.Size()-maxLog, io.SeekStart)
	}
	data, _ := io.ReadAll(io.LimitReader(f, maxLog))
	return LastError(data)
}

// LastError returns the message of the last line of level error, or worse, of
// a log in JSON lines, cut to 4 KiB; "" if there is none.
func LastError(data []byte) string {
	var last string
	for line := range bytes.Lines(data) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal(line, &entry) != nil {
			continue
		}
		switch entry.Level {
		case "error", "fatal", "panic":
			last = entry.Msg
		}
	}
	return clip(last)
}

func clip(s string) string {
	s = strings.TrimSpace(s)
	if len(s) > maxText {
		s = s[len(s)-maxText:]
	}
	return strings.ToValidUTF8(s, "?")
}

// tail keeps the first bytes that a command writes. It is a pipe that is only
// read at the end: what does not fit makes the writer's write fail, not block.
type tail struct{ r, w *os.File }

func (t *tail) open() error {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return err
	}
	t.r, t.w = os.NewFile(uintptr(p[0]), "runtime output"), os.NewFile(uintptr(p[1]), "runtime output")
	return nil
}

func (t *tail) read() string {
	if t.r == nil {
		return ""
	}
	return ReadNow(t.r)
}

func (t *tail) close() {
	_ = t.r.Close()
	_ = t.w.Close()
}

// ReadNow returns the end of what is in a pipe, as text, without waiting for more.
func ReadNow(f *os.File) string {
	buf := make([]byte, 64<<10)
	raw, err := f.SyscallConn()
	if err != nil {
		return ""
	}
	n := 0
	_ = raw.Control(func(fd uintptr) { n, _ = unix.Read(int(fd), buf) })
	text := string(buf[:max(n, 0)])
	if line := usedUpLine(text); line != "" && len(text) > maxText { // pages of stacks and registers follow
		return line
	}
	return clip(text)
}
