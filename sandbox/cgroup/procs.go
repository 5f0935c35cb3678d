package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// killTimeout bounds Kill: a process may hang in the kernel.
	killTimeout = 10 * time.Second
	// maxDepth and maxProcs bound what a container with a writable cgroup can
	// make Procs read.
	maxDepth = 64
	maxProcs = 1 << 20
)

// Procs lists the processes of the cgroup and of its children, in order and
// each once. An absent cgroup has none.
func (g *Group) Procs() ([]int, error) {
	var pids []int
	for _, dir := range g.procDirs() {
		found, err := walkProcs(dir, 0)
		if err != nil {
			return nil, fmt.Errorf("listing the processes of cgroup %s: %w", g.path, err)
		}
		pids = append(pids, found...)
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

// procDirs are the cgroup's directories in the hierarchies that have controllers:
// a privileged process may have left one of them, hardly all.
func (g *Group) procDirs() []string {
	var dirs []string
	for _, h := range g.t.hierarchies {
		if len(h.controllers) > 0 {
			dirs = append(dirs, filepath.Join(h.root, g.path))
		}
	}
	return dirs
}

func walkProcs(dir string, depth int) ([]int, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("%s: cgroups are nested deeper than %d: %w", dir, maxDepth, errdefs.ErrOutOfRange)
	}
	pids, err := readProcs(dir)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		below, err := walkProcs(filepath.Join(dir, e.Name()), depth+1)
		if err != nil {
			return nil, err
		}
		if pids = append(pids, below...); len(pids) > maxProcs {
			return nil, fmt.Errorf("%s: more than %d processes: %w", dir, maxProcs, errdefs.ErrOutOfRange)
		}
	}
	return pids, nil
}

// readProcs reads a directory's cgroup.procs. Absent means empty. So does a
// threaded cgroup of version 2, whose processes its domain lists.
func readProcs(dir string) ([]int, error) {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return parseProcs(data)
}

// parseProcs reads one pid a line. 0 stands for a process of another PID
// namespace, which has no number here.
func parseProcs(data []byte) ([]int, error) {
	var pids []int
	for line := range bytes.Lines(data) {
		pid, err := strconv.Atoi(string(bytes.TrimSpace(line)))
		if err != nil || pid < 0 {
			return nil, fmt.Errorf("pid %q in cgroup.procs: %w", line, errdefs.ErrOutOfRange)
		}
		if pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// SetOOMScoreAdj writes the oom_score_adj of every process of the cgroup and of
// its children, also of those that are forked meanwhile. Below what it may give
// is errdefs.ErrPermissionDenied. After an error some have the new one.
func (g *Group) SetOOMScoreAdj(adj int) error {
	value := strconv.Itoa(adj)
	done := map[int]bool{}
	for range 10 { // a process that forks for ever must not hold us up
		pids, err := g.Procs()
		if err != nil {
			return err
		}
		news := false
		for _, pid := range pids {
			if done[pid] {
				continue
			}
			done[pid], news = true, true
			err := g.setOOMScoreAdj(pid, value)
			switch {
			case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESRCH): // it has ended
			case errors.Is(err, unix.EACCES):
				return fmt.Errorf("oom_score_adj %d of process %d, which needs CAP_SYS_RESOURCE: %w", adj, pid, errdefs.ErrPermissionDenied)
			case err != nil:
				return fmt.Errorf("oom_score_adj %d of process %d: %w", adj, pid, err)
			}
		}
		if !news {
			return nil
		}
	}
	return nil
}

// setOOMScoreAdj holds the process's directory, so that the number's next owner is not taken for it.
func (g *Group) setOOMScoreAdj(pid int, value string) error {
	dir, err := unix.Open("/proc/"+strconv.Itoa(pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	members, err := g.Procs()
	if err != nil || !slices.Contains(members, pid) {
		return err
	}
	fd, err := unix.Openat(dir, "oom_score_adj", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte(value))
	return err
}

// Kill sends SIGKILL to every process of the cgroup and of its children, and
// returns when none is left. When some still are after ten seconds it is
// errdefs.ErrUnavailable. An absent cgroup is success.
func (g *Group) Kill() error {
	deadline := time.Now().Add(killTimeout)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		pids, err := g.Procs()
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("killing cgroup %s: processes %v are left after %v: %w", g.path, pids[:min(len(pids), 10)], killTimeout, errdefs.ErrUnavailable)
		}
		if err := g.killOnce(pids); err != nil {
			return fmt.Errorf("killing cgroup %s: %w", g.path, err)
		}
		time.Sleep(pause)
	}
}

// killOnce kills what is there now. Processes that fork meanwhile are left for
// the next time, but where the kernel kills a whole cgroup (version 2) or can
// freeze one (version 1) none can.
func (g *Group) killOnce(pids []int) error {
	if g.t.version == V2 {
		err := writeFile(filepath.Join(g.t.hierarchies[0].root, g.path, "cgroup.kill"), "1")
		if err == nil || errors.Is(err, unix.ENODEV) {
			return nil
		}
		if !errors.Is(err, fs.ErrNotExist) { // cgroup.kill is of Linux 5.14
			return err
		}
	}
	if file := g.t.file("freezer", g.path, "freezer.state"); g.t.version == V1 && file != "" {
		if err := writeFile(file, "FROZEN"); err == nil {
			defer func() { _ = writeFile(file, "THAWED") }() // a cgroup that is gone needs none
		}
	}
	return g.signalAll(pids)
}

// signalAll sends SIGKILL to those of pids that still are in the cgroup. The
// pidfds are opened first and the members read again: a number that was reused
// in between is in the second list only if its new owner is a member too.
func (g *Group) signalAll(pids []int) error {
	fds := make(map[int]int, len(pids))
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}()
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		switch {
		case errors.Is(err, unix.ESRCH):
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
			if len(fds) == 0 {
				return fmt.Errorf("opening a pidfd: %w", err)
			}
		case err != nil:
			return fmt.Errorf("opening a pidfd of process %d: %w", pid, err)
		default:
			fds[pid] = fd
		}
	}
	members, err := g.Procs()
	if err != nil {
		return err
	}
	for _, pid := range members {
		if fd, ok := fds[pid]; ok {
			if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("sending SIGKILL to process %d: %w", pid, err)
			}
		}
	}
	return nil
}
