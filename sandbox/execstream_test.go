package sandbox

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"flag"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/supervisor/server"
)

// TestMain lets the test binary be the supervisor too.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "--dir" {
		serveSupervisor()
		return
	}
	os.Exit(m.Run())
}

func serveSupervisor() {
	dir := flag.String("dir", "", "")
	ready := flag.Int("ready-fd", -1, "")
	flag.Parse()
	f := os.NewFile(uintptr(*ready), "ready")
	unix.CloseOnExec(*ready)
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	if err := server.Serve(ctx, server.Config{Dir: *dir, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Ready: func() {
		_, _ = f.WriteString("ready\n")
		_ = f.Close()
	}}); err != nil {
		_, _ = f.WriteString(err.Error())
		os.Exit(1)
	}
}

// execWorld is a host with one running container.
type execWorld struct {
	*testing.T
	host *Host
	id   string
	pid  int
}

func newExecWorld(t *testing.T) *execWorld {
	t.Helper()
	needRoot(t)
	ociRuntime := ""
	for _, name := range []string{os.Getenv("GANTRY_TEST_RUNTIME"), "runc", "crun"} {
		if path, err := exec.LookPath(name); name != "" && err == nil {
			ociRuntime = path
			break
		}
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if ociRuntime == "" || err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("CI runs this test")
		}
		t.Skip("needs runc or crun (GANTRY_TEST_RUNTIME) and busybox-static")
	}
	dir, err := os.MkdirTemp("/dev/shm", "gantry-sandbox-test-") // tmpfs, as /run is
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	rootfs := filepath.Join(dir, "rootfs")
	for _, d := range []string{"bin", "dev", "proc", "sys", "tmp"} {
		must(t, os.MkdirAll(filepath.Join(rootfs, d), 0o755))
	}
	must(t, os.WriteFile(filepath.Join(rootfs, "bin/busybox"), busybox, 0o755))
	for _, name := range strings.Fields("sh sleep cat echo head stty yes true tty tail ls wc") {
		must(t, os.Symlink("busybox", filepath.Join(rootfs, "bin", name)))
	}
	self, err := os.Executable()
	must(t, err)
	w := &execWorld{T: t, id: filepath.Base(dir)} // its cgroup has that name too
	cfg := Config{RunDir: filepath.Join(dir, "run"), Supervisor: self, SupervisorLog: filepath.Join(dir, "log")}
	w.host, err = Open(t.Context(), cfg)
	must(t, err)
	t.Cleanup(func() { _ = w.host.Close() })
	must(t, w.host.WriteBundle(w.id, &specs.Spec{
		Version: "1.0.2",
		Root:    &specs.Root{Path: rootfs, Readonly: true},
		Process: w.process(false, "sleep", "100000"),
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666", "mode=0620"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: "/" + filepath.Base(dir),
			Namespaces:  []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}},
		},
	}))
	w.pid, err = w.host.Start(t.Context(), Container{
		ID: w.id, Runtime: Runtime{Handler: "test", Path: ociRuntime}, Cgroup: "/" + filepath.Base(dir),
	})
	must(t, err)
	t.Cleanup(func() {
		if err := w.host.DeleteContainer(context.Background(), w.id); err != nil {
			t.Error(err)
		}
		groups, _ := filepath.Glob("/sys/fs/cgroup/*/" + filepath.Base(dir)) // crun makes one of hugetlb also where that is not mounted
		for _, group := range append(groups, "/sys/fs/cgroup/"+filepath.Base(dir)) {
			_ = os.RemoveAll(group)
		}
	})
	return w
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (w *execWorld) process(tty bool, args ...string) *specs.Process {
	return &specs.Process{Cwd: "/", Env: []string{"PATH=/bin"}, Args: args, Terminal: tty}
}

func (w *execWorld) ctx() context.Context {
	ctx, cancel := context.WithTimeout(w.Context(), time.Minute)
	w.Cleanup(cancel)
	return ctx
}

// exec runs a session without a terminal.
func (w *execWorld) exec(s Streams, args ...string) (int, error) {
	return w.host.ExecStream(w.ctx(), w.id, w.process(false, args...), IDMap{}, s)
}

// terminal runs one with.
func (w *execWorld) terminal(s Streams, args ...string) (int, error) {
	return w.host.ExecStream(w.ctx(), w.id, w.process(true, args...), IDMap{}, s)
}

func (w *execWorld) eventually(what string, f func() bool) {
	w.Helper()
	for end := time.Now().Add(time.Minute); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			w.Fatalf("waited in vain until %s", what)
		}
	}
}

// inside is how many processes the container has, without those that its first one does not reap.
func (w *execWorld) inside() (n int) {
	var out bytes.Buffer
	code, err := w.exec(Streams{Stdout: &out}, "sh", "-c", "exec cat /proc/[0-9]*/stat")
	if err != nil || code != 0 {
		w.Fatalf("counting processes: %d, %v, %q", code, err, out.String())
	}
	for line := range strings.Lines(out.String()) {
		if !strings.Contains(line, ") Z ") {
			n++
		}
	}
	return n - 1 // cat
}

// blocked is a client that sends nothing until it goes.
func blocked(t *testing.T) io.Reader {
	r, w := io.Pipe()
	t.Cleanup(func() { _ = w.Close() })
	return r
}

// writerFunc is a client's stream that does what the test says.
type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestExecStream(t *testing.T) {
	w := newExecWorld(t)
	for _, tt := range []struct {
		script, in, out, err string
		code                 int
	}{
		{"echo out; echo err >&2; exit 7", "", "out\n", "err\n", 7},
		{"cat; echo end", "some input\n", "some input\nend\n", "", 0},
		{"kill -KILL $$", "", "", "", 137},
		{"exec <&-; echo deaf", strings.Repeat("x", 1<<20), "deaf\n", "", 0}, // input that nobody takes
	} {
		var out, errOut bytes.Buffer
		code, err := w.exec(Streams{Stdin: strings.NewReader(tt.in), Stdout: &out, Stderr: &errOut}, "sh", "-c", tt.script)
		if err != nil || code != tt.code || out.String() != tt.out || errOut.String() != tt.err {
			t.Errorf("%s: code %d, %v, %q, %q", tt.script, code, err, out.String(), errOut.String())
		}
	}
	// The client's input stays open: the session ends with the process.
	if code, err := w.exec(Streams{Stdin: blocked(t)}, "true"); code != 0 || err != nil {
		t.Errorf("with an open stdin: %d, %v", code, err)
	}
	_, err := w.exec(Streams{Stdin: blocked(t), Stdout: io.Discard}, "no-such-program")
	if err == nil || !strings.Contains(err.Error(), "no-such-program") {
		t.Errorf("no such program: %v", err)
	}
	_, err = w.host.ExecStream(w.ctx(), "nobody", w.process(false, "true"), IDMap{}, Streams{Stdout: io.Discard})
	if !errdefs.IsNotFound(err) {
		t.Errorf("no such container: %v", err)
	}
}

// What goes in comes out, byte by byte, with the end where the client has set it.
func TestExecStreamDigest(t *testing.T) {
	w := newExecWorld(t)
	sent, got := sha256.New(), sha256.New()
	in := io.TeeReader(io.LimitReader(rand.Reader, 64<<20), sent)
	code, err := w.exec(Streams{Stdin: in, Stdout: got}, "cat")
	if err != nil || code != 0 || !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
		t.Errorf("code %d, %v, digests %x and %x", code, err, sent.Sum(nil), got.Sum(nil))
	}
}

// A child that holds the output, silent or not, does not hold the session; a
// client that is slower than the drain loses nothing that the process has written.
func TestExecStreamDrains(t *testing.T) {
	w := newExecWorld(t)
	for _, script := range []string{"sleep 1000 & exit 3", "yes & exit 3"} {
		code, err := w.exec(Streams{Stdout: io.Discard, Stderr: io.Discard}, "sh", "-c", script)
		if err != nil || code != 3 {
			t.Errorf("%s: %d, %v", script, code, err)
		}
	}
	var n int
	slow := writerFunc(func(b []byte) (int, error) {
		time.Sleep(2 * execDrain)
		n += len(b)
		return len(b), nil
	})
	code, err := w.exec(Streams{Stdout: slow}, "sh", "-c", "sleep 1000 & exec head -c 100000 /dev/zero")
	if err != nil || code != 0 || n != 100000 {
		t.Errorf("slow client: %d, %v, got %d bytes of 100000", code, err, n)
	}
}

// The process ends with its client, whichever stream tells of that.
func TestExecStreamClientGone(t *testing.T) {
	w := newExecWorld(t)
	away := errors.New("away")
	refuse := writerFunc(func([]byte) (int, error) { return 0, away })
	vanish := readerFunc(func([]byte) (int, error) { return 0, away })
	for name, s := range map[string]Streams{
		"stdout": {Stdin: blocked(t), Stdout: refuse, Stderr: io.Discard},
		"stderr": {Stdin: blocked(t), Stdout: io.Discard, Stderr: refuse},
		"stdin":  {Stdin: io.MultiReader(strings.NewReader("x"), vanish), Stdout: io.Discard},
	} {
		ctx, cancel := context.WithTimeout(w.ctx(), time.Minute)
		defer cancel()
		_, err := w.host.ExecStream(ctx, w.id, w.process(false, "sh", "-c", "echo; echo >&2; sleep 2000 & sleep 2000"), IDMap{}, s)
		if !errors.Is(err, away) {
			t.Fatalf("%s: %v", name, err)
		}
	}
	if _, err := w.terminal(Streams{Stdout: refuse}, "sh", "-c", "yes"); !errors.Is(err, away) {
		t.Errorf("terminal: %v", err)
	}
	// The client reads no more, and then its connection ends.
	stuck := make(chan struct{})
	ctx, cancel := context.WithCancelCause(w.ctx())
	_, err := w.host.ExecStream(ctx, w.id, w.process(false, "yes"), IDMap{}, Streams{Stdout: writerFunc(func(b []byte) (int, error) {
		cancel(away)
		<-stuck
		return 0, io.ErrClosedPipe
	})})
	if !errors.Is(err, away) {
		t.Errorf("ctx's end: %v", err)
	}
	close(stuck)
	w.eventually("the container has its first process alone", func() bool { return w.inside() == 1 })
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// typist is a client at a terminal.
type typist struct {
	*io.PipeReader
	keys *io.PipeWriter
	mu   sync.Mutex
	seen bytes.Buffer
}

func newTypist() *typist {
	r, w := io.Pipe()
	return &typist{PipeReader: r, keys: w}
}

func (y *typist) Write(b []byte) (int, error) {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.seen.Write(b)
}

func (y *typist) shows(text string) func() bool {
	return func() bool {
		y.mu.Lock()
		defer y.mu.Unlock()
		return strings.Contains(y.seen.String(), text)
	}
}

func TestExecStreamTerminal(t *testing.T) {
	w := newExecWorld(t)
	y := newTypist()
	sizes := make(chan TerminalSize, 8)
	sizes <- TerminalSize{}
	sizes <- TerminalSize{Width: 101, Height: 31}
	type result struct {
		code int
		err  error
	}
	done := make(chan result, 1)
	go func() {
		code, err := w.terminal(Streams{Stdin: y, Stdout: y, Resize: sizes}, "sh", "-c", "stty size; tty; exec sh")
		_ = y.CloseWithError(errors.New("nobody reads the keys any more"))
		done <- result{code, err}
	}()
	w.eventually("the terminal has its size from the beginning", y.shows("31 101\r\n/dev/pts/"))
	w.eventually("the shell asks", y.shows("# "))
	sizes <- TerminalSize{Width: 80, Height: 24}
	sizes <- TerminalSize{Width: 0, Height: 24}
	sizes <- TerminalSize{Width: 500, Height: 400}
	w.eventually("the new size shows", func() bool {
		_, _ = io.WriteString(y.keys, "stty size\n")
		time.Sleep(20 * time.Millisecond)
		return y.shows("400 500")()
	})
	_, _ = io.WriteString(y.keys, "echo sleeping; sleep 3000\n")
	w.eventually("it sleeps", y.shows("\nsleeping"))
	pause := 20 * time.Millisecond
	w.eventually("the shell lives on", func() bool {
		// More than one, for the first may come before the shell has put sleep into the foreground; not too soon, for each
		// throws away what the shell has not read yet.
		_, _ = io.WriteString(y.keys, "\x03")
		time.Sleep(pause)
		_, _ = io.WriteString(y.keys, "echo $((6*7)) lives\n")
		time.Sleep(pause)
		pause *= 2
		return y.shows("42 lives")()
	})
	_, _ = io.WriteString(y.keys, "exit 9\n")
	if r := <-done; r.err != nil || r.code != 9 {
		t.Errorf("code %d, %v", r.code, r.err)
	}
	close(sizes)
	_ = y.keys.Close()
}

// A terminal ends with its session, all output of which is there, also for a slow client and with a child left behind.
func TestExecStreamTerminalEnds(t *testing.T) {
	w := newExecWorld(t)
	var n int
	slow := writerFunc(func(b []byte) (int, error) {
		time.Sleep(execDrain + 10*time.Millisecond)
		n += bytes.Count(b, []byte("x"))
		return len(b), nil
	})
	const script = "sleep 1000 & yes xxxxxxx | head -c 16000"
	code, err := w.terminal(Streams{Stdin: strings.NewReader(""), Stdout: slow}, "sh", "-c", script)
	if err != nil || code != 0 || n != 14000 {
		t.Errorf("code %d, %v, %d letters of 14000", code, err, n)
	}
	// A terminal that has only input is read nevertheless.
	code, err = w.terminal(Streams{Stdin: blocked(t)}, "sh", "-c", "head -c 300000 /dev/zero; exit 4")
	if err != nil || code != 4 {
		t.Errorf("without stdout: %d, %v", code, err)
	}
}

// CVE-2022-23471: what fails to start leaves nothing, though its client sends sizes.
func TestExecStreamLeavesNothing(t *testing.T) {
	w := newExecWorld(t)
	count := func() (goroutines, files int) {
		fds, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return runtime.NumGoroutine(), len(fds)
	}
	run := func(i int) {
		sizes := make(chan TerminalSize)
		stop := make(chan struct{})
		var sending sync.WaitGroup
		sending.Go(func() {
			for n := uint16(1); ; n++ {
				select {
				case sizes <- TerminalSize{Width: n, Height: n}:
				case <-stop:
					return
				}
			}
		})
		r, in := io.Pipe()
		command := []string{"no-such-program", "true"}[i%2]
		s := Streams{Stdin: r, Stdout: io.Discard, Resize: sizes}
		_, err := w.host.ExecStream(w.ctx(), w.id, w.process(i%4 < 2, command), IDMap{}, s)
		if (err != nil) != (i%2 == 0) {
			t.Errorf("%s: %v", command, err)
		}
		close(stop)
		sending.Wait()
		_ = in.Close()
	}
	run(0)
	run(3)
	goroutines, files := count()
	for i := range 40 {
		run(i)
	}
	w.eventually("goroutines and descriptors are as before", func() bool {
		g, f := count()
		return g <= goroutines && f <= files
	})
	w.eventually("the container has its first process alone", func() bool { return w.inside() == 1 })
}
