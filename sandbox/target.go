package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// targetPin is the name, in a container's bundle, of the PID namespace of
// another container that it is to join.
const targetPin = "pidns"

// PinTarget pins the PID namespace of a process, the first one of the
// container whose cgroup is given (a path below the hierarchies' roots), and
// returns the pin's path. It stays until [Host.DeleteContainer] of id.
//
// A number alone says little: the process may have ended, and another one have
// got it, since it was learned. So all is asked of one process, by the
// descriptor of its directory in /proc, and only one in the container's cgroup
// will do; else the error is errdefs.ErrFailedPrecondition.
func (h *Host) PinTarget(id string, pid int, cgroup string) (path string, err error) {
	ended := fmt.Errorf("process %d of the container has ended: %w", pid, errdefs.ErrFailedPrecondition)
	proc, err := os.OpenRoot(fmt.Sprintf("/proc/%d", pid))
	if errors.Is(err, os.ErrNotExist) {
		return "", ended
	}
	if err != nil {
		return "", fmt.Errorf("looking at process %d: %w", pid, err)
	}
	defer proc.Close()
	groups, err := proc.ReadFile("cgroup")
	if errors.Is(err, unix.ESRCH) || err == nil && !inCgroup(groups, cgroup) {
		return "", ended
	}
	if err != nil {
		return "", fmt.Errorf("looking at process %d: %w", pid, err)
	}
	dir, err := proc.Open(".")
	if err != nil {
		return "", fmt.Errorf("looking at process %d: %w", pid, err)
	}
	defer dir.Close()
	if err := os.MkdirAll(h.bundle(id), 0o700); err != nil {
		return "", fmt.Errorf("making the bundle: %w", err)
	}
	path = filepath.Join(h.bundle(id), targetPin)
	err = pin(fmt.Sprintf("/proc/self/fd/%d/ns/pid", dir.Fd()), path)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) {
		return "", ended
	}
	return path, err
}

// inCgroup says whether proc_pid_cgroup(5), in groups, names the cgroup or one below it.
func inCgroup(groups []byte, cgroup string) bool {
	for line := range bytes.Lines(groups) {
		// ID:CONTROLLERS:PATH
		fields := strings.SplitN(strings.TrimSuffix(string(line), "\n"), ":", 3)
		if len(fields) == 3 && (fields[2] == cgroup || strings.HasPrefix(fields[2], strings.TrimSuffix(cgroup, "/")+"/")) {
			return true
		}
	}
	return false
}
