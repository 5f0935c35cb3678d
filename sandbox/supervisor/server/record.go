package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/supervisor"
)

const (
	recordVersion = 1
	recordFile    = "container.json"
	exitFile      = "exit.json"
	maxRecord     = 1 << 20

	exitRoom = 4096 // more than an exit takes, and what a file system gives at least
)

// record is container.json: written before the runtime is started, PID being
// 0, again when the process is known, and, PID being 0 again, before it is
// killed to be removed.
type record struct {
	Version   int                   `json:"version"`
	BootID    string                `json:"bootID"`
	Request   supervisor.RunRequest `json:"request"`
	PID       int                   `json:"pid"`
	StartTime uint64                `json:"startTime"` // of PID, in ticks since boot; tells it from a later one of that number
	OOMKills  uint64                `json:"oomKills"`  // in the cgroup before the start
	// OOMKillsAbove is the same of the cgroup above; nil where that is of no use, see oomFileAbove.
	OOMKillsAbove *uint64 `json:"oomKillsAbove,omitempty"`
	StdinPipe     uint64  `json:"stdinPipe,omitempty"`  // inode of a stdin that is to end; 0 where a FIFO is it
	StdinEnded    bool    `json:"stdinEnded,omitempty"` // by a session; nobody may open it again
}

// check refuses a record that reads well and would have others killed than the container's processes.
func (r *record) check(bootID string) error {
	if r.PID < 0 || r.PID == 1 {
		return fmt.Errorf("pid %d is no container's", r.PID)
	}
	if err := checkRun(&r.Request); err != nil {
		return err
	}
	files := r.Request.CgroupProcs
	if r.PID == 0 || r.BootID != bootID || len(files) == 0 {
		return nil
	}
	for range 2 { // it may end meanwhile
		if s, err := readStat(r.PID); notNow(err) {
			return err
		} else if err != nil || s.startTime != r.StartTime || s.state == 'Z' {
			return nil
		}
		pids, err := cgroupPIDs(files)
		if notNow(err) {
			return err
		}
		if slices.Contains(pids, r.PID) {
			return nil
		}
	}
	return fmt.Errorf("pid %d is in none of the container's cgroups", r.PID)
}

// checkExit refuses what reads well and is not the end of container id.
func checkExit(e *supervisor.Exit, id string) error {
	if year := e.At.Year(); e.ID != id || e.Code < 0 || e.Code > 255 || year < 1970 || year > 2200 {
		return fmt.Errorf("id %q, code %d, at %v is no end of container %s", e.ID, e.Code, e.At, id)
	}
	return nil
}

// writeFile replaces dir/name in one step. It is not synced: what is here is
// worth nothing once the machine has gone down.
func writeFile(dir, name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", name, err)
	}
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}

// reserveExit makes the file that becomes exit.json: it will fit, be the run directory full by then.
func reserveExit(dir string) error {
	if err := os.WriteFile(filepath.Join(dir, exitFile+".new"), make([]byte, exitRoom), 0o600); err != nil {
		return fmt.Errorf("making room for the exit: %w", err)
	}
	return nil
}

// noteExit writes the exit to what reserveExit has made, or to a new file: what it is kept in until writeExit.
func noteExit(dir string, exit supervisor.Exit) error {
	data, err := json.Marshal(exit)
	if err != nil {
		return fmt.Errorf("encoding the exit: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, exitFile+".new"), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(data, bytes.Repeat([]byte{' '}, max(0, exitRoom-len(data)))...))
	return errors.Join(err, f.Close())
}

// writeExit makes exit.json, which says too that the output has been read.
func writeExit(dir string, exit supervisor.Exit) error {
	if err := noteExit(dir, exit); err != nil {
		return err
	}
	path := filepath.Join(dir, exitFile)
	return os.Rename(path+".new", path)
}

// readExit reads what either has written; an error: neither has, or it cannot be read now.
func (c *container) readExit() (exit supervisor.Exit, err error) {
	for _, name := range []string{exitFile, exitFile + ".new"} {
		if err = readFile(c.dir, name, &exit); err == nil {
			err = checkExit(&exit, c.id)
		}
		if err == nil || notNow(err) {
			break
		}
	}
	return exit, err
}

// readFile reads what writeFile wrote.
func readFile(dir, name string, v any) error {
	path := filepath.Join(dir, name)
	data, err := readBounded(path, maxRecord)
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("decoding %s: %w", path, err)
	}
	return nil
}

// readBounded reads a regular file, or one of the kernel's, of up to limit bytes.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("reading %s: longer than %d bytes", path, limit)
	}
	return data, nil
}

// exists reports whether path is there, links not followed.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

func bootID() (string, error) {
	data, err := readBounded("/proc/sys/kernel/random/boot_id", 100)
	return strings.TrimSpace(string(data)), err
}

var idPattern = regexp.MustCompile(`^[a-zA-Z0-9_-][a-zA-Z0-9_.-]{0,127}$`)

func checkID(id string) error {
	if !idPattern.MatchString(id) {
		return fmt.Errorf("container id %q: want up to 128 letters, digits, '_', '-' and, not first, '.': %w", id, errdefs.ErrInvalidArgument)
	}
	return nil
}

func checkRun(r *supervisor.RunRequest) error {
	if err := checkID(r.ID); err != nil {
		return err
	}
	for _, p := range []struct{ name, value string }{
		{"runtime path", r.Runtime.Path}, {"runtime root", r.Runtime.Root}, {"bundle", r.Bundle},
	} {
		if !filepath.IsAbs(p.value) {
			return fmt.Errorf("container %s: %s %q is not an absolute path: %w", r.ID, p.name, p.value, errdefs.ErrInvalidArgument)
		}
	}
	for _, o := range r.Runtime.Options {
		if !strings.HasPrefix(o, "--") || strings.Contains(o, "\x00") {
			return fmt.Errorf("container %s: runtime option %q is not of the form --NAME or --NAME=VALUE: %w", r.ID, o, errdefs.ErrInvalidArgument)
		}
	}
	if r.LogPath != "" && !filepath.IsAbs(r.LogDir) {
		return fmt.Errorf("container %s: log directory %q is not an absolute path: %w", r.ID, r.LogDir, errdefs.ErrInvalidArgument)
	}
	if r.LogMax < 0 {
		return fmt.Errorf("container %s: largest size %d of the log is negative: %w", r.ID, r.LogMax, errdefs.ErrInvalidArgument)
	}
	for _, p := range r.CgroupProcs {
		if !filepath.IsAbs(p) || filepath.Clean(p) != p || filepath.Base(p) != "cgroup.procs" {
			return fmt.Errorf("container %s: %q is not the path of a cgroup.procs: %w", r.ID, p, errdefs.ErrInvalidArgument)
		}
		// All that is in it is killed with the container. Its name is the container's; systemd's driver has more in it.
		if name := filepath.Base(filepath.Dir(p)); name != r.ID && name != "gantry-"+r.ID+".scope" {
			return fmt.Errorf("container %s: cgroup %q is not named after it: %w", r.ID, filepath.Dir(p), errdefs.ErrInvalidArgument)
		}
	}
	return nil
}
