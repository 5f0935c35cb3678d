package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/gantry-cri/gantry/sandbox/cgroup"
	"github.com/gantry-cri/gantry/sandbox/hostpath"
	"github.com/gantry-cri/gantry/sandbox/hostwork"
	"github.com/gantry-cri/gantry/sandbox/podinit"
	"github.com/gantry-cri/gantry/sandbox/supervisor"
)

// Config says where a Host keeps its files and finds its supervisor. All paths are absolute.
type Config struct {
	RunDir        string // below it lie pods/, containers/, runtimes/, podinit/ and supervisor/
	Supervisor    string // the gantry-supervisor binary
	MaxLog        int64  // size that a container's log file does not pass; 0 for none
	SupervisorLog string // file that the supervisor's messages are appended to
	// SupervisorScope has systemd make a scope for the supervisor: the caller is in the cgroup of a unit.
	SupervisorScope bool
}

// Host is this node's pods and containers. It is made by [Open], is safe for
// concurrent use and keeps no state beside the files and the supervisor's.
type Host struct {
	runDir      string
	maxLog      int64
	podInitRoot string
	cgroups     cgroup.Version
	sup         *supervisor.Client
	paths       hostwork.Paths
}

// Open prepares the directories and connects to the node's supervisor,
// starting one if none runs. Close it when done; containers run on.
func Open(ctx context.Context, cfg Config) (*Host, error) {
	version, err := cgroup.Detect()
	if err != nil {
		return nil, err
	}
	h := &Host{runDir: cfg.RunDir, maxLog: cfg.MaxLog, cgroups: version, paths: hostwork.Paths{Opener: hostpath.NewOpener(cfg.Supervisor)}}
	for _, dir := range []string{h.podsDir(), h.containersDir(), filepath.Join(h.runDir, "runtimes")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("making the run directory: %w", err)
		}
	}
	if h.podInitRoot, err = podinit.Install(filepath.Join(h.runDir, "podinit")); err != nil {
		return nil, err
	}
	h.sup, err = supervisor.Connect(ctx, supervisor.Config{
		Dir:     filepath.Join(h.runDir, "supervisor"),
		Binary:  cfg.Supervisor,
		LogFile: cfg.SupervisorLog,
		Scope:   cfg.SupervisorScope,
	})
	if err != nil {
		return nil, fmt.Errorf("connecting to the supervisor: %w", err)
	}
	return h, nil
}

// Close ends the connection to the supervisor, which runs on as long as it has containers.
func (h *Host) Close() error { return h.sup.Close() }

// OpenPath opens a path of the host, on whatever file system, making what is
// missing of it as directories. One that hangs holds up the caller alone, until
// ctx ends. Close the path.
func (h *Host) OpenPath(ctx context.Context, path string) (*hostpath.Path, error) {
	return h.paths.Open(ctx, path)
}

// Paths is what may be done with paths of the host, by processes of their own.
func (h *Host) Paths() hostwork.Paths { return h.paths }

// CgroupVersion is the cgroup version that the node uses.
func (h *Host) CgroupVersion() cgroup.Version { return h.cgroups }

// PodInitRoot is the read-only root file system with the init of pods that share a PID namespace.
func (h *Host) PodInitRoot() string { return h.podInitRoot }

// Watch calls f for every exit that the supervisor has recorded, then for each
// new one, until ctx ends. A broken connection is made again after a pause;
// exits that happened meanwhile come with the replay, so f must take an exit twice.
// Beside that it has the supervisor become the program that is installed, which
// upgraded is told of; when that has to wait it is tried again from time to time.
//
// Before it connects again it calls another, with what has broken the connection, or
// nil after an upgrade: the supervisor is another program or process now, which may
// know less, as when it had to set a container's record aside.
func (h *Host) Watch(ctx context.Context, f func(Exit), another func(error), upgraded func(Upgrade)) {
	u := upgrader{tell: upgraded}
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		began := time.Now()
		err := h.watch(ctx, f, &u)
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errUpgradeDue) {
			pause = 10 * time.Millisecond
			continue
		}
		if time.Since(began) > 10*time.Second {
			pause = 10 * time.Millisecond
		}
		if u.replaced {
			err = nil
		}
		another(err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// holdPause is how long is watched without holding when that fails.
const holdPause = time.Second

// Exit is the end of a container's first process.
type Exit supervisor.Exit

// Process is what the supervisor knows of a container.
type Process struct {
	ID   string
	PID  int
	Exit *Exit // nil while it runs
}

// Processes lists the containers that the supervisor has, running or ended, and not yet deleted.
func (h *Host) Processes(ctx context.Context) (map[string]Process, error) {
	states, err := h.sup.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("asking the supervisor for its containers: %w", err)
	}
	m := make(map[string]Process, len(states))
	for _, s := range states {
		p := Process{ID: s.ID, PID: s.PID}
		if s.Exit != nil {
			e := Exit(*s.Exit)
			p.Exit = &e
		}
		m[s.ID] = p
	}
	return m, nil
}

func (h *Host) podsDir() string       { return filepath.Join(h.runDir, "pods") }
func (h *Host) containersDir() string { return filepath.Join(h.runDir, "containers") }

// sweepAtOnce is how many containers are deleted at a time: each is a start of the OCI runtime.
const sweepAtOnce = 16

// Sweep removes every pod and container of the run directory that keep does
// not know: what a crash or a reboot has left. One that hangs holds no other up; the errors are joined.
func (h *Host) Sweep(ctx context.Context, keepPod, keepContainer func(id string) bool) error {
	procs, err := h.Processes(ctx)
	if err != nil {
		return err
	}
	var errs []error
	ids, err := names(h.containersDir())
	errs = append(errs, err)
	for id := range procs {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	var mu sync.Mutex
	var g errgroup.Group
	g.SetLimit(sweepAtOnce)
	for _, id := range slices.Compact(ids) {
		if keepContainer(id) {
			continue
		}
		g.Go(func() error {
			err := h.DeleteContainer(ctx, id)
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
			return nil
		})
	}
	_ = g.Wait() // no errors
	ids, err = names(h.podsDir())
	errs = append(errs, err)
	for _, id := range ids {
		if !keepPod(id) {
			errs = append(errs, h.RemovePod(id))
		}
	}
	return errors.Join(errs...)
}

func names(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("listing leftovers: %w", err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out, nil
}

// watch watches over one connection, and meanwhile upgrades the supervisor, if
// that is due, and holds over another connection what containers would lose with
// it. It ends with either connection, and when an upgrade is due again.
func (h *Host) watch(ctx context.Context, f func(Exit), u *upgrader) error {
	watching, cancel := context.WithCancelCause(ctx)
	var holding sync.WaitGroup
	defer holding.Wait()
	defer cancel(nil)
	holding.Go(func() {
		u.upgrade(ctx, h.sup) // not to be cut off by the end of the connection that it brings about
		if !u.due.IsZero() {
			defer time.AfterFunc(time.Until(u.due), func() { cancel(errUpgradeDue) }).Stop()
		}
		err := h.sup.Hold(watching)
		if errdefs.IsNotImplemented(err) {
			return
		}
		select { // exits that are recorded are told even if it fails each time
		case <-watching.Done():
		case <-time.After(holdPause):
		}
		cancel(fmt.Errorf("holding what containers would lose with their supervisor: %w", err))
	})
	return h.sup.Watch(watching, func(e supervisor.Exit) { f(Exit(e)) })
}
