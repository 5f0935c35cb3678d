package supervisor_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/supervisor"
	"github.com/gantry-cri/gantry/sandbox/supervisor/server"
)

// TestMain lets the test binary be the supervisor too, which a client starts as
// it would gantry-supervisor.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "--dir" {
		serve()
		return
	}
	os.Exit(m.Run())
}

func serve() {
	dir := flag.String("dir", "", "")
	ready := flag.Int("ready-fd", -1, "")
	handover := flag.Int("handover", 0, "")
	check := flag.Int("check", 0, "")
	flag.Parse()
	v := ownVariant()
	if *check > 0 {
		if err := server.Check(*dir, *check); err != nil || v == "refusing" {
			fmt.Fprintln(os.Stderr, "refused:", err)
			os.Exit(1)
		}
		switch v {
		case "not executable any more":
			_ = os.Chmod("/proc/self/exe", 0o600)
		case "touched in the check":
			_ = os.Chtimes("/proc/self/exe", time.Time{}, time.Unix(1, 0))
		case "checking without end":
			select {}
		}
		return
	}
	if *handover > 0 && v == "crashing at once" {
		os.Exit(1)
	}
	if *handover > 0 && v == "damaging" {
		id, _ := os.ReadFile(filepath.Join(filepath.Dir(*dir), "to-be-damaged"))
		_ = os.WriteFile(filepath.Join(*dir, "containers", string(id), "container.json"), []byte("{"), 0o600)
	}
	if n := 0; strings.HasPrefix(v, "dying") { // so many times
		_, _ = fmt.Sscanf(v, "dying %d", &n)
		for i := range n {
			if os.Mkdir(filepath.Join(filepath.Dir(*dir), fmt.Sprintf("died-%d", i)), 0o700) == nil {
				_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			}
		}
	}
	if n := 0; strings.HasPrefix(v, "short of descriptors") { // by so many
		_, _ = fmt.Sscanf(v, "short of descriptors %d", &n)
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(n), Max: uint64(n)})
	}
	f := os.NewFile(uintptr(*ready), "ready")
	unix.CloseOnExec(*ready)
	go countGoroutines(*dir)
	err := server.Serve(context.Background(), server.Config{Dir: *dir, Version: v, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Handover: *handover, Ready: func() {
		if *handover > 0 && v == "crashing late" {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		}
		_, _ = f.WriteString("ready\n")
		_ = f.Close()
	}})
	if err != nil {
		_, _ = f.WriteString(err.Error())
		os.Exit(1)
	}
}

// countGoroutines writes how many there are, of a supervisor that gets SIGUSR1.
func countGoroutines(dir string) {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, unix.SIGUSR1)
	for range asked {
		file := filepath.Join(dir, "goroutines")
		_ = os.WriteFile(file+".new", []byte(strconv.Itoa(runtime.NumGoroutine())), 0o600)
		_ = os.Rename(file+".new", file)
	}
}

// resources counts descriptors and goroutines, of this process and of the supervisor.
func (w *world) resources() string {
	file := filepath.Join(w.config().Dir, "goroutines")
	_ = os.Remove(file)
	pid := w.supervisorPID()
	w.must(unix.Kill(pid, unix.SIGUSR1))
	var theirs []byte
	w.eventually("the supervisor counts", func() bool { theirs, _ = os.ReadFile(file); return len(theirs) > 0 })
	fds := func(pid int) int { return len(list("/proc/" + strconv.Itoa(pid) + "/fd")) }
	return fmt.Sprintf("descriptors %d and %d, goroutines %d and %s", fds(os.Getpid()), fds(pid), runtime.NumGoroutine(), theirs)
}

// world is one supervisor's surroundings: directories, root file system,
// cgroup parent, and the audit at the end that nothing of it is left.
type world struct {
	*testing.T
	dir     string // on tmpfs where there is one, as /run is
	binary  string // the supervisor
	runtime supervisor.Runtime
	cgroup  string // below each hierarchy
	mounts  []string
	client  *supervisor.Client
	newer   *supervisor.Client // of whom has installed another program last
	n       int

	mu    sync.Mutex
	exits map[string]supervisor.Exit
	news  chan struct{}
}

func findRuntime(t testing.TB) string {
	if os.Geteuid() != 0 {
		skip(t, "needs root: it starts containers")
	}
	for _, name := range []string{os.Getenv("GANTRY_TEST_RUNTIME"), "runc", "crun"} {
		if name == "" {
			continue
		}
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	skip(t, "needs an OCI runtime: runc or crun in PATH, or its path in GANTRY_TEST_RUNTIME")
	return ""
}

// skip skips, but not unseen in CI.
func skip(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal("in CI this must run: " + reason)
	}
	t.Skip(reason)
}

func newWorld(t *testing.T) *world {
	w := &world{T: t, runtime: supervisor.Runtime{Path: findRuntime(t)}, exits: map[string]supervisor.Exit{}, news: make(chan struct{}, 1)}
	base := "/dev/shm"
	var fs unix.Statfs_t
	if unix.Statfs(base, &fs) != nil || fs.Type != unix.TMPFS_MAGIC {
		base = ""
	}
	var err error
	if w.dir, err = os.MkdirTemp(base, "gantry-supervisor-test-"); err != nil {
		t.Fatal(err)
	}
	w.runtime.Root = filepath.Join(w.dir, "runtime")
	w.cgroup = filepath.Base(w.dir)
	w.mounts = cgroupMounts(t)
	w.makeRootfs()
	w.binary, err = os.Executable()
	w.must(err)
	w.connect()
	t.Cleanup(w.audit)
	return w
}

func (w *world) makeRootfs() {
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		skip(w.T, "needs a static busybox: install busybox-static")
	}
	bin := filepath.Join(w.dir, "rootfs", "bin")
	for _, d := range []string{bin, "dev", "proc", "sys", "tmp", "etc"} {
		if !filepath.IsAbs(d) {
			d = filepath.Join(w.dir, "rootfs", d)
		}
		w.must(os.MkdirAll(d, 0o755))
	}
	w.must(os.WriteFile(filepath.Join(bin, "busybox"), busybox, 0o755))
	for _, name := range []string{"sh", "sleep", "cat", "echo", "seq", "true", "head", "tr", "dd", "yes", "ps", "kill", "usleep", "stty", "tty", "tail", "id", "setsid", "printf", "awk"} {
		w.must(os.Symlink("busybox", filepath.Join(bin, name)))
	}
}

func (w *world) config() supervisor.Config {
	return supervisor.Config{Dir: filepath.Join(w.dir, "supervisor"), Binary: w.binary, LogFile: filepath.Join(w.dir, "supervisor.log")}
}

func (w *world) connect() {
	w.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var err error
	w.client, err = supervisor.Connect(ctx, w.config())
	w.must(err)
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// limit bounds every wait, for machines on which all takes ten times as long.
const limit = 60 * time.Second

func (w *world) ctx() context.Context {
	ctx, cancel := context.WithTimeout(w.Context(), limit)
	w.Cleanup(cancel)
	return ctx
}

// watch collects exits until the test ends.
func (w *world) watch() {
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	w.Cleanup(func() { cancel(); done.Wait() })
	client := w.client
	done.Go(func() {
		for ctx.Err() == nil {
			_ = client.Watch(ctx, func(e supervisor.Exit) {
				w.mu.Lock()
				w.exits[e.ID] = e
				w.mu.Unlock()
				select {
				case w.news <- struct{}{}:
				default:
				}
			})
			time.Sleep(5 * time.Millisecond)
		}
	})
}

func (w *world) exit(id string) supervisor.Exit {
	w.Helper()
	late := time.After(limit)
	for {
		w.mu.Lock()
		e, ok := w.exits[id]
		w.mu.Unlock()
		if ok {
			return e
		}
		select {
		case <-w.news:
		case <-late:
			w.Fatalf("no exit of %s is told", id)
		}
	}
}

// container makes a bundle.
func (w *world) container(args ...string) supervisor.RunRequest {
	return w.bundle(func(s *specs.Spec) { s.Process.Args = args })
}

func (w *world) bundle(edit func(*specs.Spec)) supervisor.RunRequest {
	w.n++
	id := fmt.Sprintf("c%d", w.n)
	dir := filepath.Join(w.dir, "bundles", id)
	w.must(os.MkdirAll(dir, 0o700))
	s := &specs.Spec{
		Version: "1.0.2",
		Root:    &specs.Root{Path: filepath.Join(w.dir, "rootfs"), Readonly: true},
		Process: &specs.Process{Cwd: "/", Env: []string{"PATH=/bin"}, Args: []string{"sleep", "1000"}},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666", "mode=0620"}},
			{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs"},
		},
		Linux: &specs.Linux{
			CgroupsPath: "/" + w.cgroup + "/" + id,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
			},
		},
	}
	edit(s)
	data, err := json.Marshal(s)
	w.must(err)
	w.must(os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600))
	req := supervisor.RunRequest{
		ID: id, Runtime: w.runtime, Bundle: dir, Terminal: s.Process.Terminal,
		LogDir: filepath.Join(w.dir, "logs"), LogPath: id + "/0.log",
	}
	for _, m := range w.mounts {
		g := filepath.Join(m, w.cgroup, id)
		req.CgroupProcs = append(req.CgroupProcs, filepath.Join(g, "cgroup.procs"))
		if filepath.Base(m) == "memory" {
			req.OOMFile = filepath.Join(g, "memory.oom_control")
		}
	}
	if len(w.mounts) == 1 && req.OOMFile == "" {
		req.OOMFile = filepath.Join(w.mounts[0], w.cgroup, id, "memory.events")
	}
	return req
}

func (w *world) run(req supervisor.RunRequest) int {
	w.Helper()
	pid, err := w.client.Run(w.ctx(), req)
	w.must(err)
	return pid
}

func (w *world) delete(id string) {
	w.Helper()
	w.must(w.client.Delete(w.ctx(), id))
}

// exec runs a command and returns its output and code. All that it starts must end with it.
func (w *world) exec(ctx context.Context, id string, args ...string) (out string, code int, err error) {
	p, merr := json.Marshal(specs.Process{Cwd: "/", Env: []string{"PATH=/bin"}, Args: args})
	w.must(merr)
	r, wr, perr := os.Pipe()
	w.must(perr)
	defer r.Close()
	var buf bytes.Buffer
	var done sync.WaitGroup
	done.Go(func() { _, _ = io.Copy(&buf, r) })
	code, err = w.client.Exec(ctx, supervisor.ExecRequest{ID: id, Process: p, Stdout: wr, Stderr: wr})
	_ = wr.Close()
	_ = r.SetReadDeadline(time.Now().Add(limit))
	done.Wait()
	return buf.String(), code, err
}

// logged returns the lines of a log, and checks that each is whole.
func (w *world) logged(req supervisor.RunRequest) []line {
	w.Helper()
	data, err := os.ReadFile(filepath.Join(req.LogDir, req.LogPath))
	w.must(err)
	return w.parse(data)
}

type line struct{ stream, tag, text string }

func (w *world) parse(data []byte) []line {
	w.Helper()
	var lines []line
	for l := range strings.Lines(string(data)) {
		f := strings.SplitN(strings.TrimSuffix(l, "\n"), " ", 4)
		if len(f) != 4 || !strings.HasSuffix(l, "\n") || (f[1] != "stdout" && f[1] != "stderr") || (f[2] != "F" && f[2] != "P") {
			w.Fatalf("torn line %d in the log: %.200q", len(lines), l)
		}
		if _, err := time.Parse(time.RFC3339Nano, f[0]); err != nil {
			w.Fatalf("line %d of the log: %v", len(lines), err)
		}
		lines = append(lines, line{f[1], f[2], f[3]})
	}
	return lines
}

func texts(lines []line, stream string) []string {
	var out []string
	for _, l := range lines {
		if l.stream == stream {
			out = append(out, l.text)
		}
	}
	return out
}

// supervisorPID is that of the supervisor that this process has started, 0 if there is none. Children of a supervisor
// are none: they have its command until they have executed their own. Nor are those that were killed and may not have ended.
func (w *world) supervisorPID(killed ...int) int {
	w.Helper()
	for _, pid := range w.processes() {
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if s, parent := stat(pid); bytes.Contains(cmdline, []byte("\x00--dir\x00")) && s != 'Z' && parent == os.Getpid() && !slices.Contains(killed, pid) {
			return pid
		}
	}
	return 0
}

func state(pid int) byte { s, _ := stat(pid); return s }

// stat is a process' state, 'X' if there is none, and its parent.
func stat(pid int) (state byte, parent int) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, err2 := fmt.Sscanf(string(data[bytes.LastIndexByte(data, ')')+1:]), " %c %d", &state, &parent)
	if err != nil || err2 != nil {
		return 'X', 0
	}
	return state, parent
}

// processes are those of this world: supervisors, runtimes and containers.
func (w *world) processes() []int {
	entries, err := os.ReadDir("/proc")
	w.must(err)
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		cmdline, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		cgroup, _ := os.ReadFile("/proc/" + e.Name() + "/cgroup")
		if bytes.Contains(cmdline, []byte(w.dir)) || bytes.Contains(cgroup, []byte(w.cgroup)) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// audit deletes what is there and then looks for what is left all the same.
func (w *world) audit() {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	states, err := w.client.List(ctx)
	if err != nil {
		w.Error("listing for the audit:", err)
	}
	for _, s := range states {
		if err := w.client.Delete(ctx, s.ID); err != nil {
			w.Error("deleting for the audit:", err)
		}
	}
	_ = w.client.Close()
	if w.newer != nil {
		_ = w.newer.Close()
	}
	w.eventually("the clients have nothing of a container open", func() bool { // sessions that the deletions have ended, soon
		return !slices.ContainsFunc(list("/proc/self/fd"), func(fd string) bool {
			target, _ := os.Readlink("/proc/self/fd/" + fd)
			return strings.HasPrefix(target, w.config().Dir+"/containers/")
		})
	})
	for _, dir := range []string{"supervisor/containers", "supervisor/quarantine", "runtime"} {
		w.eventually(dir+" is empty", func() bool { return len(list(filepath.Join(w.dir, dir))) == 0 })
	}
	if pid := w.supervisorPID(); pid != 0 {
		var open []string
		w.eventually("the supervisor has nothing of a container open", func() bool {
			open = nil
			for _, fd := range list(fmt.Sprintf("/proc/%d/fd", pid)) {
				target, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd))
				if strings.Contains(target, "/containers/") || strings.Contains(target, "/logs/") || strings.Contains(target, "pidfd") {
					open = append(open, target)
				}
			}
			return len(open) == 0
		})
		if len(open) > 0 {
			w.Errorf("supervisor still has open: %v", open)
		}
		if err := unix.Kill(pid, unix.SIGTERM); err != nil && err != unix.ESRCH { // it ends by itself too, being idle
			w.Error(err)
		}
	}
	w.eventually("no process is left", func() bool { return len(w.processes()) == 0 })
	for _, m := range w.mounts {
		g := filepath.Join(m, w.cgroup)
		if err := os.Remove(g); err != nil && !errors.Is(err, os.ErrNotExist) {
			w.Errorf("cgroup is left: %v: %v", err, list(g))
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	if bytes.Contains(mounts, []byte(w.dir)) {
		w.Error("a mount is left")
	}
	log, _ := os.ReadFile(filepath.Join(w.dir, "supervisor.log"))
	if bytes.Contains(log, []byte("DATA RACE")) || bytes.Contains(log, []byte("panic")) {
		w.Error("supervisor's log tells of a race or a panic")
	}
	if w.Failed() {
		w.Logf("supervisor's log:\n%s", log)
	}
	if err := os.RemoveAll(w.dir); err != nil {
		w.Error(err)
	}
}

func (w *world) eventually(what string, ok func() bool) {
	w.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			w.Errorf("it is not so that %s", what)
			for _, pid := range w.processes() {
				cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
				w.Logf("process %d %c: %.100q", pid, state(pid), cmdline)
			}
			return
		}
	}
}

func list(dir string) []string {
	entries, _ := os.ReadDir(dir)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// cgroupMounts are the mount points of all cgroup hierarchies.
func cgroupMounts(t testing.TB) []string {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var mounts []string
	for l := range strings.Lines(string(data)) {
		before, after, _ := strings.Cut(l, " - ")
		if f := strings.Fields(after); len(f) > 0 && strings.HasPrefix(f[0], "cgroup") {
			mounts = append(mounts, strings.Fields(before)[4])
		}
	}
	return mounts
}
