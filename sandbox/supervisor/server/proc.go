package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// procStat is what is used of /proc/<pid>/stat (proc_pid_stat(5)).
type procStat struct {
	state     byte
	ppid      int
	session   int
	startTime uint64
	exitCode  int  // a wait status; of a zombie
	exiting   bool // PF_EXITING: set before an init kills the others of its PID namespace
	kernel    bool // PF_KTHREAD
	noArgs    bool // it is within execve(2), has no memory any more, or is the kernel's
}

func readStat(pid int) (procStat, error) {
	data, err := readBounded(fmt.Sprintf("/proc/%d/stat", pid), 8<<10)
	if err != nil {
		return procStat{}, err
	}
	return parseStat(data)
}

// parseStat skips the command's name, which may contain anything, by its last parenthesis.
func parseStat(data []byte) (s procStat, err error) {
	i := bytes.LastIndexByte(data, ')')
	if i < 0 {
		return s, errors.New("malformed /proc/<pid>/stat: no command")
	}
	f := strings.Fields(string(data[i+1:]))
	const first = 3 // the number of f[0] in the manual page
	if len(f) <= 52-first || len(f[0]) != 1 {
		return s, fmt.Errorf("malformed /proc/<pid>/stat: %d fields", len(f))
	}
	s.state = f[0][0]
	var errs [6]error
	s.ppid, errs[0] = strconv.Atoi(f[4-first])
	s.session, errs[1] = strconv.Atoi(f[6-first])
	s.startTime, errs[2] = strconv.ParseUint(f[22-first], 10, 64)
	s.exitCode, errs[3] = strconv.Atoi(f[52-first])
	var flags uint64
	flags, errs[4] = strconv.ParseUint(f[9-first], 10, 64)
	const pfExiting, pfKthread = 0x4, 0x200000 // include/linux/sched.h
	s.exiting, s.kernel = flags&pfExiting != 0, flags&pfKthread != 0
	var argEnd uint64
	argEnd, errs[5] = strconv.ParseUint(f[49-first], 10, 64)
	s.noArgs = argEnd == 0
	return s, errors.Join(errs[:]...)
}

// maxCgroupDepth bounds how deep below a container's cgroup its processes are
// looked for: it may be able to make cgroups there itself.
const maxCgroupDepth = 64

// cgroupPIDs returns the processes of a container's cgroups and of those below:
// crun puts them in one below with systemd, and containers that may write to
// their cgroups in any.
// With an error, there may be more.
func cgroupPIDs(files []string) (pids []int, err error) {
	for _, file := range files {
		if pids, err = pidsBelow(pids, filepath.Dir(file), 0); err != nil {
			return pids, err
		}
	}
	return pids, nil
}

// pidsBelow adds the processes of the cgroup dir and of those below to pids.
func pidsBelow(pids []int, dir string, depth int) ([]int, error) {
	data, err := readBounded(filepath.Join(dir, "cgroup.procs"), 4<<20)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return pids, nil // removed
	}
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) { // which a threaded one says
		return pids, err
	}
	for line := range bytes.Lines(data) { // none of a threaded cgroup, whose processes its domain lists
		if pid, err := strconv.Atoi(strings.TrimSpace(string(line))); err == nil && pid > 1 {
			pids = append(pids, pid)
		}
	}
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil || st.Nlink == 2 || depth == maxCgroupDepth { // 2: no directory in it
		return pids, nil
	}
	entries, err := os.ReadDir(dir)
	if outOfDescriptors(err) {
		return pids, err
	}
	for _, e := range entries {
		if e.IsDir() {
			if pids, err = pidsBelow(pids, filepath.Join(dir, e.Name()), depth+1); err != nil {
				return pids, err
			}
		}
	}
	return pids, nil
}

// killCgroup kills all processes of a container's cgroups and returns when
// none is left, or with an error when ctx ends.
func killCgroup(ctx context.Context, files []string) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		pids, err := cgroupPIDs(files)
		if len(pids) == 0 && err == nil {
			return nil
		}
		for _, file := range files {
			dir := filepath.Dir(file)
			// cgroup v2 kills its descendants' processes as well; v1 processes
			// that are frozen take no signal before they are thawed.
			_ = writeExisting(filepath.Join(dir, "cgroup.kill"), "1")
			_ = writeExisting(filepath.Join(dir, "freezer.state"), "THAWED")
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		select {
		case <-ctx.Done():
			if err != nil {
				return fmt.Errorf("looking for its processes: %w", err)
			}
			return fmt.Errorf("processes %v do not end on SIGKILL: %w", head(pids, 10), context.Cause(ctx))
		case <-time.After(pause):
		}
	}
}

// thaw lets frozen processes run, so that they can take a signal.
func thaw(files []string) {
	for _, file := range files {
		_ = writeExisting(filepath.Join(filepath.Dir(file), "freezer.state"), "THAWED")
		_ = writeExisting(filepath.Join(filepath.Dir(file), "cgroup.freeze"), "0")
	}
}

func writeExisting(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// removeCgroups removes a container's cgroups, which show no process. The
// runtime's own delete has usually done so. A cgroup is busy for a while yet
// when a thread is on its way out: cgroup.procs does not show it any more once
// the leader of its process has ended.
func removeCgroups(files []string) {
	for _, file := range files {
		for pause := time.Millisecond; !removeCgroup(filepath.Dir(file), 16) && pause < time.Second; pause *= 2 {
			time.Sleep(pause)
		}
	}
}

func removeCgroup(dir string, depth int) (gone bool) {
	err := unix.Rmdir(dir)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return true
	}
	if depth == 0 {
		return false
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	for _, e := range entries {
		if e.IsDir() {
			removeCgroup(filepath.Join(dir, e.Name()), depth-1)
		}
	}
	err = unix.Rmdir(dir)
	return err == nil || errors.Is(err, fs.ErrNotExist)
}

// killSession kills every process of the session that pid leads or led, and
// what those have started, until none is left or ctx ends. It looks among the
// processes of the container's cgroups, or of the node when it has none.
func killSession(ctx context.Context, leader int, files []string) {
	for {
		pids, err := cgroupPIDs(files)
		if len(files) == 0 {
			pids, err = allPIDs()
		}
		stats := make(map[int]procStat, len(pids))
		for _, pid := range pids {
			s, serr := readStat(pid)
			if serr == nil && s.state != 'Z' {
				stats[pid] = s
			}
			if outOfDescriptors(serr) {
				err = serr
			}
		}
		killed := err != nil // or perhaps not all
		for pid, s := range stats {
			if pid == leader || s.session == leader || startedBy(stats, pid, leader) {
				killed = true
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		if !killed {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// startedBy reports whether an ancestor of pid is in the leader's session.
func startedBy(stats map[int]procStat, pid, leader int) bool {
	for range len(stats) {
		s, ok := stats[pid]
		if !ok {
			return false
		}
		if pid == leader || s.session == leader {
			return true
		}
		pid = s.ppid
	}
	return false
}

func allPIDs() (pids []int, err error) {
	d, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil && pid > 1 {
			pids = append(pids, pid)
		}
	}
	return pids, err
}

func head[T any](s []T, n int) []T { return s[:min(n, len(s))] }
