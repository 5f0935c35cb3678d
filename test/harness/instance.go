package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/images"
)

const (
	readyTimeout = 2 * time.Minute // seconds on a loaded machine; an emulated one that shares two processors needed 30
	stopTimeout  = 20 * time.Second
	settleTime   = 60 * time.Second // for kernel tear-down before an audit fails
	mostShown    = 40               // leftovers in an audit's error
)

// Config says what an instance has that others have not. The zero value is a plain instance with runc.
type Config struct {
	Flags    []string         // appended to gantry serve's
	Registry *images.Registry // whose mirrors the instance uses
	CNIConf  string           // its CNI configuration folder; empty: one without files
	TOML     string           // its configuration file, which the flags go over
	Subnets  string           // of the default network, with commas between; empty: one of IPv4
	Tmpfs    bool             // its run folder is on one, as /run is on nodes
	Prepare  func(dir string) // called before the first start; what it mounts at dir/root and dir/run, Close unmounts
}

// Instance is a running daemon. Its methods are for one goroutine; the clients are for any.
type Instance struct {
	Runtime runtimeapi.RuntimeServiceClient
	Image   runtimeapi.ImageServiceClient
	Dir     string // temporary folder that holds everything of the instance
	Socket  string // path of the CRI socket
	LogDir  string // for the pods' log folders; not audited
	Bridge  string // of the default network

	Started func(pid int) // unless nil, called when the daemon's process is there, before it is waited for

	bin    string
	args   []string
	conn   *grpc.ClientConn
	cmd    *exec.Cmd
	exited chan struct{} // closed when cmd has been waited for
	before snapshot      // before the first start
	idle   snapshot      // when first ready
}

// number tells instances of this process apart in bridges and subnets.
var number = struct {
	mu   sync.Mutex
	next int
}{}

func nextNumber() int {
	number.mu.Lock()
	defer number.mu.Unlock()
	number.next++
	return number.next
}

// Start builds the binaries, starts an instance and waits until it is ready.
func Start(ctx context.Context, cfg Config) (*Instance, error) {
	bin, err := binaries(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "gantry-test-")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o711); err != nil { // the roots of user namespaces pass it
		return nil, err
	}
	i := &Instance{Dir: dir, Socket: filepath.Join(dir, "run/gantry.sock"), LogDir: filepath.Join(dir, "logs"), bin: bin}
	if i.before, err = take(dir); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	delete(i.before, "file "+dir)
	if err := i.setUp(cfg); err != nil {
		return nil, errors.Join(err, i.Close())
	}
	if err := i.StartDaemon(ctx); err != nil {
		return nil, errors.Join(err, i.Close())
	}
	if i.idle, err = take(dir); err != nil {
		return nil, errors.Join(err, i.Close())
	}
	return i, nil
}

func (i *Instance) setUp(cfg Config) error {
	runc, err := FindRunc()
	if err != nil {
		return err
	}
	conf, certs := cfg.CNIConf, filepath.Join(i.Dir, "certs.d")
	if conf == "" {
		conf = filepath.Join(i.Dir, "net.d")
	}
	for _, d := range []string{conf, certs, i.LogDir} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	if cfg.Registry != nil {
		if err := cfg.Registry.WriteMirrors(certs); err != nil {
			return err
		}
	}
	if run := filepath.Join(i.Dir, "run"); cfg.Tmpfs {
		if err := os.Mkdir(run, 0o700); err != nil {
			return err
		}
		if err := unix.Mount("tmpfs", run, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=700"); err != nil {
			return fmt.Errorf("mounting a tmpfs at %s: %w", run, err)
		}
	}
	if cfg.Prepare != nil {
		cfg.Prepare(i.Dir)
	}
	config := i.ConfigFile()
	if err := os.WriteFile(config, []byte(cfg.TOML), 0o600); err != nil {
		return err
	}
	n := nextNumber()
	i.Bridge = fmt.Sprintf("gtest%d", n)
	subnets := cfg.Subnets
	if subnets == "" {
		subnets = fmt.Sprintf("10.213.%d.0/24", n%256)
	}
	i.args = append([]string{"serve", "--config", config,
		"--root", filepath.Join(i.Dir, "root"), "--run", filepath.Join(i.Dir, "run"), "--socket", i.Socket,
		"--cni-conf-dir", conf, "--cni-bin-dir", filepath.Join(i.Dir, "cni-bin"), "--registry-config-dir", certs,
		"--runtime", "runc=" + runc, "--default-runtime", "runc", "--log-level", "4",
		"--bridge", i.Bridge, "--subnet", subnets}, cfg.Flags...)
	if systemd() {
		i.args = append(i.args, "--cgroup-driver", "systemd")
	}
	i.conn, err = grpc.NewClient("unix://"+i.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1, MaxDelay: 5 * time.Millisecond}}))
	if err != nil {
		return err
	}
	i.Runtime, i.Image = runtimeapi.NewRuntimeServiceClient(i.conn), runtimeapi.NewImageServiceClient(i.conn)
	return nil
}

// StartDaemon starts the daemon, first or after Stop or Kill, and waits until it reports both conditions ready.
func (i *Instance) StartDaemon(ctx context.Context) error {
	log, err := os.OpenFile(i.logFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(i.bin, "gantry"), i.args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := waited.start(cmd); err != nil {
		return fmt.Errorf("starting gantry: %w", err)
	}
	i.cmd, i.exited = cmd, make(chan struct{})
	go func() {
		defer close(i.exited)
		waited.wait(cmd)
	}()
	if i.Started != nil {
		i.Started(cmd.Process.Pid)
	}
	if err := i.waitReady(ctx); err != nil {
		return fmt.Errorf("%w; its log ends:\n%s", err, i.LogTail(30))
	}
	return nil
}

func (i *Instance) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	exited := i.exited
	go func() { // a daemon that has ended will not answer
		select {
		case <-exited:
			cancel()
		case <-ctx.Done():
		}
	}()
	last := errors.New("no answer")
	for {
		status, err := i.Runtime.Status(ctx, &runtimeapi.StatusRequest{}, grpc.WaitForReady(true))
		if err == nil {
			if err = ready(status.GetStatus()); err == nil {
				return nil
			}
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-i.exited:
			return fmt.Errorf("gantry ended before it was ready: %s", i.cmd.ProcessState)
		case <-ctx.Done():
			return fmt.Errorf("gantry was not ready in time: %w", last)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func ready(s *runtimeapi.RuntimeStatus) error {
	for _, c := range s.GetConditions() {
		if !c.GetStatus() {
			return fmt.Errorf("condition %s is false: %s: %s", c.GetType(), c.GetReason(), c.GetMessage())
		}
	}
	return nil
}

// Stop ends the daemon with SIGTERM, as systemd does, and requires exit status 0. Containers run on.
func (i *Instance) Stop() error {
	if err := i.end(syscall.SIGTERM); err != nil {
		return err
	}
	if code := i.cmd.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("gantry ended on SIGTERM with %s; its log ends:\n%s", i.cmd.ProcessState, i.LogTail(30))
	}
	return nil
}

// Kill ends the daemon with SIGKILL.
func (i *Instance) Kill() error { return i.end(syscall.SIGKILL) }

// Restart is Stop and StartDaemon.
func (i *Instance) Restart(ctx context.Context) error {
	if err := i.Stop(); err != nil {
		return err
	}
	return i.StartDaemon(ctx)
}

func (i *Instance) end(sig syscall.Signal) error {
	if i.cmd == nil {
		return nil
	}
	if err := i.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("sending %s to gantry: %w", sig, err)
	}
	select {
	case <-i.exited:
		return nil
	case <-time.After(stopTimeout):
		_ = i.cmd.Process.Signal(syscall.SIGQUIT) // leaves the goroutines' stacks in the log
		<-i.exited
		return fmt.Errorf("gantry did not end in %s of %s; its log ends:\n%s", stopTimeout, sig, i.LogTail(200))
	}
}

// Gantry runs bin/gantry with the arguments to its end and returns what it printed. It is killed with ctx.
func Gantry(ctx context.Context, args ...string) (string, error) {
	bin, err := binaries(ctx)
	if err != nil {
		return "", err
	}
	out, err := exec.CommandContext(ctx, filepath.Join(bin, "gantry"), args...).CombinedOutput()
	return string(out), err
}

// Command is the daemon's command line, for a test that has another start it.
func (i *Instance) Command() []string {
	return append([]string{filepath.Join(i.bin, "gantry")}, i.args...)
}

// PID is the daemon's process id.
func (i *Instance) PID() int { return i.cmd.Process.Pid }

// Alive says whether the daemon's process is there.
func (i *Instance) Alive() bool {
	select {
	case <-i.exited:
		return false
	default:
		return true
	}
}

// SupervisorPIDs are the process ids of the instance's supervisors; there must never be more than one.
func (i *Instance) SupervisorPIDs() []int {
	var pids []int
	for _, p := range descendants(os.Getpid()) { // parents first
		// A child of one is none: it has the same command until it has executed its own. Nor is what opens a path.
		if !p.zombie && strings.Contains(p.command, "gantry-supervisor --dir") && strings.Contains(p.command, i.Dir) && !slices.Contains(pids, p.parent) {
			pids = append(pids, p.pid)
		}
	}
	return pids
}

// Close ends the daemon and the supervisor, requires that the machine is as before Start, and removes the folder.
func (i *Instance) Close() error {
	var errs []error
	if i.cmd != nil {
		select {
		case <-i.exited:
		default:
			errs = append(errs, i.Stop())
		}
		i.cmd = nil
	}
	if i.conn != nil {
		errs = append(errs, i.conn.Close())
	}
	for _, pid := range i.SupervisorPIDs() {
		if err := unix.Kill(pid, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("ending supervisor %d: %w", pid, err))
		}
	}
	for _, name := range []string{"root", "run"} { // what Config.Tmpfs and Config.Prepare mounted; else there is nothing mounted
		err := unix.Unmount(filepath.Join(i.Dir, name), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("unmounting the %s folder: %w", name, err))
		}
	}
	if err := os.RemoveAll(i.Dir); err != nil {
		errs = append(errs, fmt.Errorf("removing the instance's folder: %w", err))
	}
	errs = append(errs, i.audit(i.before, nil, "after the daemon and the supervisor were ended"))
	return errors.Join(errs...)
}

// ConfigFile is read when the daemon starts.
func (i *Instance) ConfigFile() string { return filepath.Join(i.Dir, "config.toml") }

func (i *Instance) logFile() string { return filepath.Join(i.Dir, "gantry.log") }

// LogTail is the last n lines of the daemon's log.
func (i *Instance) LogTail(n int) string {
	body, err := os.ReadFile(i.logFile())
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(body), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
