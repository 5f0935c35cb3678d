package harness

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const insideEnv = "GANTRY_TEST_ISOLATED"

// Main runs the tests of a package that starts instances: in namespaces of their own as root; without root they
// run only to say why they skip.
func Main(m *testing.M) {
	if os.Geteuid() != 0 {
		os.Exit(m.Run())
	}
	Isolate()
	code := m.Run()
	if err := closeRegistry(); err != nil {
		fmt.Fprintln(os.Stderr, "ending the test registry:", err)
		code = 1
	}
	os.Exit(code)
}

// Isolate returns in a process with namespaces of its own: the first call starts this program again with the same
// arguments in them, waits, and exits as it did.
func Isolate() {
	if os.Getenv(insideEnv) != "" {
		if err := settle(); err != nil {
			fmt.Fprintln(os.Stderr, "setting up the tests' namespaces:", err)
			os.Exit(1)
		}
		return
	}
	code, err := runIsolated()
	if err != nil {
		fmt.Fprintln(os.Stderr, "running in namespaces of its own:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

// settle finishes what the parent could not do from outside.
func settle() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("becoming a subreaper: %w", err)
	}
	if err := mountOwnCgroups(); err != nil {
		return err
	}
	return linkUp("lo", nil)
}

func runIsolated() (code int, err error) {
	// The child dies with the thread that started it, so that thread must be the one that waits.
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return 0, fmt.Errorf("becoming a subreaper: %w", err)
	}
	cgroups, err := enclose()
	if err != nil {
		return 0, fmt.Errorf("making cgroups: %w", err)
	}
	defer func() { err = errors.Join(err, cgroups.leave()) }()
	tmp, err := os.MkdirTemp("", "gantry-harness-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	if err := os.Chmod(tmp, 0o711); err != nil { // the roots of user namespaces pass it
		return 0, err
	}
	// go test and a terminal signal the child too; this process only has to stay for the clean-up.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1", "TMPDIR="+tmp)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Unshareflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWIPC,
		Pdeathsig:    syscall.SIGKILL,
	}
	if !systemd() {
		cmd.SysProcAttr.Unshareflags |= unix.CLONE_NEWCGROUP
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	// The child's own go on to a leaf; of a v2 group that has processes no other could get a controller.
	if err := cgroups.goHome(); err != nil {
		_ = cmd.Process.Kill()
		return 0, errors.Join(fmt.Errorf("leaving the tests' cgroups: %w", err), cmd.Wait())
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s) // the child may be gone; Wait tells
		}
	}()
	err = cmd.Wait()
	killDescendants()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	if cmd.ProcessState.ExitCode() < 0 {
		return 1, nil // killed
	}
	return cmd.ProcessState.ExitCode(), nil
}

// killDescendants kills every descendant of this subreaper and reaps until none is left.
func killDescendants() {
	for {
		ps := descendants(os.Getpid())
		if len(ps) == 0 {
			return
		}
		for _, p := range ps {
			_ = unix.Kill(p.pid, unix.SIGKILL) // one that is gone is what we want
		}
		for {
			if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}
