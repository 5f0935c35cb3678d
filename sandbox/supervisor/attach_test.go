package supervisor_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox"
	"github.com/gantry-cri/gantry/sandbox/supervisor"
)

// host is the daemon's side of the world's supervisor.
func (w *world) host() *sandbox.Host {
	w.Helper()
	h, err := sandbox.Open(w.ctx(), sandbox.Config{RunDir: w.dir, Supervisor: w.config().Binary, SupervisorLog: w.config().LogFile})
	w.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	var watching sync.WaitGroup
	watching.Go(func() { h.Watch(ctx, func(sandbox.Exit) {}, func(error) {}, func(sandbox.Upgrade) {}) })
	w.Cleanup(func() { cancel(); watching.Wait(); _ = h.Close() })
	return h
}

// interactive makes the bundle of a container with stdin.
func (w *world) interactive(script string) supervisor.RunRequest {
	req := w.container("sh", "-c", script)
	req.Stdin = true
	return req
}

// client is one that is attached.
type client struct {
	*world
	in       *io.PipeWriter // its stdin
	out, err *screen
	size     chan sandbox.TerminalSize
	leave    context.CancelFunc
	done     chan error
}

// attach attaches a client, with all streams that there may be.
func (w *world) attach(h *sandbox.Host, id string) *client {
	w.Helper()
	ctx, cancel := context.WithCancel(w.ctx())
	r, in := io.Pipe()
	c := &client{
		world: w, in: in, out: newScreen(), err: newScreen(), size: make(chan sandbox.TerminalSize),
		leave: cancel, done: make(chan error, 1),
	}
	before := w.attached()
	go func() {
		err := h.Attach(ctx, id, sandbox.Streams{Stdin: r, Stdout: c.out, Stderr: c.err, Resize: c.size})
		_ = r.CloseWithError(errors.New("session has ended")) // as the connection's end does
		c.done <- err
	}()
	w.Cleanup(func() { cancel(); _ = in.Close() })
	w.eventually("it is attached", func() bool { return len(c.done) > 0 || w.attached() > before })
	return c
}

// attached counts the pipes from the supervisor to this process, two for each client.
func (w *world) attached() (n int) {
	pipes := func(pid int, mode os.FileMode) map[string]bool {
		found := map[string]bool{}
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		for _, fd := range list(dir) {
			path := filepath.Join(dir, fd)
			info, err := os.Lstat(path) // the link's mode says what the descriptor is good for
			if target, _ := os.Readlink(path); err == nil && info.Mode()&mode != 0 && strings.HasPrefix(target, "pipe:") {
				found[target] = true
			}
		}
		return found
	}
	ours := pipes(os.Getpid(), 0o400)
	for target := range pipes(w.supervisorPID(), 0o200) {
		if ours[target] {
			n++
		}
	}
	return n
}

func (c *client) send(text string) {
	c.Helper()
	if _, err := c.in.Write([]byte(text)); err != nil {
		c.Fatal(err)
	}
}

// wait returns how the session has ended.
func (c *client) wait() error {
	c.Helper()
	select {
	case err := <-c.done:
		return err
	case <-time.After(time.Minute):
		c.Fatal("session does not end")
		return nil
	}
}

func (c *client) wantEnd(want error) {
	c.Helper()
	if err := c.wait(); !errors.Is(err, want) || want == nil && err != nil {
		c.Errorf("session ended with %v, want %v", err, want)
	}
}

// screen is what a client sees.
type screen struct {
	mu   sync.Mutex
	data bytes.Buffer
	news chan struct{}
}

func newScreen() *screen { return &screen{news: make(chan struct{}, 1)} }

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case s.news <- struct{}{}:
	default:
	}
	return s.data.Write(p)
}

func (s *screen) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.data.Len()
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.data.String()
}

func (c *client) sees(s *screen, want string) {
	c.Helper()
	for limit := time.After(time.Minute); !strings.Contains(s.String(), want); {
		select {
		case <-s.news:
		case <-limit:
			c.Fatalf("client sees %q, not %q", s.String(), want)
		}
	}
}

func (c *client) saw(s *screen, want string) {
	c.Helper()
	if got := s.String(); got != want {
		c.Errorf("client saw %.300q, want %q", got, want)
	}
}

// Two clients see all from when they came, to the last byte; so does the log.
func TestAttachOutput(t *testing.T) {
	w := newWorld(t)
	h := w.host()
	req := w.interactive("echo before; read x; echo $x; echo aside >&2; read x; echo $x; exit 3")
	w.run(req)
	w.eventually("it is up", func() bool { return len(w.logged(req)) > 0 })
	first := w.attach(h, req.ID)
	first.send("one\n")
	first.sees(first.out, "one\n")
	first.sees(first.err, "aside\n")
	second := w.attach(h, req.ID)
	second.send("two\n")
	first.wantEnd(nil)
	second.wantEnd(nil)
	first.saw(first.out, "one\ntwo\n")
	first.saw(first.err, "aside\n")
	second.saw(second.out, "two\n")
	second.saw(second.err, "")
	if got := texts(w.logged(req), "stdout"); !slices.Equal(got, []string{"before", "one", "two"}) {
		t.Errorf("log %q", got)
	}
	if err := h.Attach(w.ctx(), req.ID, sandbox.Streams{Stdout: first.out}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("attach to one that has ended: %v", err)
	}
	if err := h.Attach(w.ctx(), "nobody", sandbox.Streams{Stdout: first.out}); !errdefs.IsNotFound(err) {
		t.Errorf("attach to an unknown one: %v", err)
	}
}

// A client who reads nothing is cut off. Container, log and the other client,
// at whose pace the container writes, lose nothing.
func TestAttachOfSlowClient(t *testing.T) {
	w := newWorld(t)
	h := w.host()
	const parts, part = 16, 1 << 20
	line := strings.Repeat("0123456789abcdef", 64)[1:] + "\n"
	req := w.interactive(fmt.Sprintf("while read x; do yes $x | head -c %d; done", part))
	w.run(req)
	fast := w.attach(h, req.ID)
	stuck := make(chan struct{})
	slow := make(chan error, 1)
	go func() {
		blocks := writerFunc(func([]byte) (int, error) { <-stuck; return 0, io.ErrClosedPipe })
		slow <- h.Attach(w.ctx(), req.ID, sandbox.Streams{Stdout: blocks})
	}()
	w.eventually("both are attached", func() bool { return w.attached() >= 3 })
	for i := range parts {
		fast.send(line)
		w.eventually("the fast client has all", func() bool { return fast.out.len() == (i+1)*part })
	}
	err := <-slow
	close(stuck)
	if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "too slowly") {
		t.Errorf("slow client: %v", err)
	}
	if fast.out.String() != strings.Repeat(line, parts*part/len(line)) {
		t.Error("the fast client got something else")
	}
	if got := len(w.logged(req)); got != parts*part/len(line) {
		t.Errorf("%d lines in the log", got)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// Stdin outlives its clients: each can go, in whatever way, and another come.
func TestAttachStdin(t *testing.T) {
	w := newWorld(t)
	h := w.host()
	req := w.interactive("while read x; do echo got $x; done; echo end")
	w.run(req)
	c := w.attach(h, req.ID)
	c.send("one\n")
	c.sees(c.out, "got one\n")
	_ = c.in.Close() // its half-close ends the session
	c.wantEnd(nil)

	c = w.attach(h, req.ID)
	c.send("two\n")
	c.sees(c.out, "got two\n")
	c.leave()
	c.wantEnd(context.Canceled)

	c = w.attach(h, req.ID)
	c.send("three\n")
	c.sees(c.out, "got three\n")
	_ = c.in.CloseWithError(errors.New("connection reset"))
	if err := c.wait(); err == nil || !strings.Contains(err.Error(), "connection reset") {
		t.Errorf("client that was reset: %v", err)
	}

	c = w.attach(h, req.ID)
	_ = h.Close() // the daemon ends
	c.wantEnd(errdefs.ErrUnavailable)
	c = w.attach(w.host(), req.ID)
	c.send("four\n")
	c.sees(c.out, "got four\n")
	w.eventually("the log has what the clients have seen", func() bool { // which may see it first
		return slices.Equal(texts(w.logged(req), "stdout"), []string{"got one", "got two", "got three", "got four"})
	})
}

// StdinOnce: the container sees its stdin's end when the first session with it
// half-closes or ends, whoever else is attached, and never again anything else.
func TestAttachStdinOnce(t *testing.T) {
	w := newWorld(t)
	w.watch()
	h := w.host()
	for name, end := range map[string]func(*client){
		"half-close": func(c *client) { _ = c.in.Close() },
		"leave":      func(c *client) { c.leave() },
	} {
		req := w.interactive("cat; echo end; read x || read x; echo really; sleep 1000")
		req.StdinOnce = true
		stdin := fdTarget(t, w.run(req), 0)
		first, second := w.attach(h, req.ID), w.attach(h, req.ID)
		first.send("one\n")
		second.sees(second.out, "one\n")
		end(first)
		second.sees(second.out, "end\nreally\n")
		w.killSupervisor()
		second.wantEnd(errdefs.ErrUnavailable)
		third := w.attach(h, req.ID)
		for _, fd := range list(fmt.Sprintf("/proc/%d/fd", w.supervisorPID())) {
			if target, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", w.supervisorPID(), fd)); target == stdin {
				t.Errorf("%s: the next supervisor has opened stdin again", name)
			}
		}
		w.must(w.client.Kill(w.ctx(), req.ID, unix.SIGKILL, true))
		third.wantEnd(nil)
		w.exit(req.ID)
	}
}

// What the container does after the half-close still comes, up to its end.
func TestAttachAfterHalfClose(t *testing.T) {
	w := newWorld(t)
	req := w.interactive("cat >/tmp/in; cat /tmp/in; exit 1")
	req.StdinOnce = true
	w.run(req)
	c := w.attach(w.host(), req.ID)
	text := strings.Repeat("0123456789abcde\n", 1<<18)
	c.send(text)
	_ = c.in.Close()
	c.wantEnd(nil)
	if c.out.String() != text {
		t.Errorf("%d of %d bytes came back", len(c.out.String()), len(text))
	}
}

func TestAttachTerminal(t *testing.T) {
	w := newWorld(t)
	h := w.host()
	req := w.bundle(func(s *specs.Spec) {
		s.Process.Terminal = true
		s.Process.Args = []string{"sh", "-c", "trap 'stty size' WINCH; echo up; while :; do read x && echo got $x; done"}
	})
	req.Stdin, req.StdinOnce = true, true
	w.run(req)
	w.eventually("it is up", func() bool { return len(w.logged(req)) > 0 })
	c := w.attach(h, req.ID)
	c.size <- sandbox.TerminalSize{Width: 77, Height: 33}
	c.sees(c.out, "33 77\r\n")
	c.size <- sandbox.TerminalSize{}
	c.size <- sandbox.TerminalSize{Width: 78, Height: 34}
	c.sees(c.out, "34 78\r\n")
	if strings.Contains(c.out.String(), "0 0") {
		t.Errorf("a size of 0x0 was set: %q", c.out.String())
	}
	c.send("one\n")
	c.sees(c.out, "got one\r\n")
	_ = c.in.Close()
	c.wantEnd(nil)
	c = w.attach(h, req.ID) // a terminal's stdin does not end with a session
	c.send("two\n")
	c.sees(c.out, "got two\r\n")
	c.saw(c.err, "")
	w.must(w.client.Kill(w.ctx(), req.ID, unix.SIGKILL, false))
	c.wantEnd(nil)
}

// A container that does not read its stdin holds up nobody's end; one without
// stdin has none.
func TestAttachOfStdinThatIsNotRead(t *testing.T) {
	w := newWorld(t)
	h := w.host()
	for _, once := range []bool{true, false} {
		req := w.interactive("sleep 1000")
		req.StdinOnce = once
		pid := w.run(req)
		c := w.attach(h, req.ID)
		go func() { _, _ = c.in.Write(make([]byte, 1<<20)) }()
		w.eventually("the container's stdin is full", func() bool { return w.pending(pid) >= 65536 })
		c.leave()
		c.wantEnd(context.Canceled)
		c = w.attach(h, req.ID)
		w.delete(req.ID)
		c.wantEnd(nil)
	}
	req := w.container("sleep", "1000")
	w.run(req)
	c := w.attach(h, req.ID)
	go func() { _, _ = c.in.Write([]byte("to nobody")) }()
	w.delete(req.ID)
	c.wantEnd(nil)
}

// pending is how much of a process' stdin has not been read.
func (w *world) pending(pid int) int {
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/0", pid), os.O_RDONLY|unix.O_NONBLOCK, 0)
	w.must(err)
	defer f.Close()
	raw, err := f.SyscallConn()
	w.must(err)
	n := 0
	_ = raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	return n
}

// CVE-2025-64329: a client who goes while the container writes nothing leaves
// nothing behind, in either process.
func TestAttachLeavesNothing(t *testing.T) {
	w := newWorld(t)
	h := w.host()
	silent := w.interactive("sleep 1000")
	w.run(silent)
	terminal := w.bundle(func(s *specs.Spec) { s.Process.Terminal = true })
	terminal.Stdin = true
	w.run(terminal)
	ended := w.container("true")
	w.run(ended)
	w.watch()
	w.exit(ended.ID)

	session := func(i int) {
		ctx, cancel := context.WithCancel(w.ctx())
		r, in := io.Pipe()
		id := []string{silent.ID, terminal.ID, ended.ID}[i%3]
		done := make(chan struct{})
		go func() {
			sizes := make(chan sandbox.TerminalSize)
			_ = h.Attach(ctx, id, sandbox.Streams{Stdin: r, Stdout: io.Discard, Stderr: io.Discard, Resize: sizes})
			_ = r.Close()
			close(done)
		}()
		if i%2 == 0 && id != ended.ID { // it is attached when it leaves
			_, _ = in.Write([]byte("x"))
		}
		if i%4 == 0 {
			_ = in.Close()
		} else {
			cancel()
		}
		<-done
		cancel()
	}
	for i := range 20 {
		session(i)
	}
	var before string
	w.eventually("it is quiet", func() bool { last := before; before = w.resources(); return before == last })
	var all sync.WaitGroup
	for part := range 10 {
		all.Go(func() {
			for i := range 100 {
				session(part + i)
			}
		})
	}
	all.Wait()
	var after string
	w.eventually("nothing is left", func() bool { after = w.resources(); return after == before })
	t.Logf("before %s; after %s", before, after)
}

// A session ends with its supervisor, and says so; the container keeps its
// stdin, and the next supervisor lets clients in.
func TestAttachWhenSupervisorEnds(t *testing.T) {
	w := newWorld(t)
	h := w.host()
	req := w.interactive("while read x; do echo got $x; done; echo end")
	w.run(req)
	for i, end := range []unix.Signal{unix.SIGKILL, unix.SIGTERM, unix.SIGKILL} {
		c := w.attach(h, req.ID)
		c.send(fmt.Sprintf("%d\n", i))
		c.sees(c.out, fmt.Sprintf("got %d\n", i))
		w.endSupervisor(end)
		if err := c.wait(); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "the container goes on") {
			t.Errorf("session: %v", err)
		}
	}
	if _, err := w.client.List(t.Context()); err != nil { // by the next one, which writes what the last had read
		t.Fatal(err)
	}
	if got := texts(w.logged(req), "stdout"); !slices.Equal(got, []string{"got 0", "got 1", "got 2"}) {
		t.Errorf("log %q", got)
	}
}
