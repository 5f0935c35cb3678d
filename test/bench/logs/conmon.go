package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/gantry-cri/gantry/test/harness"
)

// conmon runs containers as CRI-O does, one conmon each.
type conmon struct {
	path, dir, runc, name string

	mu   sync.Mutex
	next int
	pids []int // of conmons not yet removed
}

func newConmon(path, dir string) (*conmon, error) {
	runc, err := harness.FindRunc()
	if err != nil {
		return nil, err
	}
	out, err := exec.Command(path, "--version").Output()
	if err != nil {
		return nil, fmt.Errorf("asking conmon for its version: %w", err)
	}
	c := &conmon{path: path, dir: filepath.Join(dir, "conmon"), runc: runc, name: "conmon"}
	if v := regexp.MustCompile(`version (\S+)`).FindSubmatch(out); v != nil {
		c.name += " " + string(v[1])
	}
	for _, d := range []string{"exits", "sockets"} {
		if err := os.MkdirAll(filepath.Join(c.dir, d), 0o700); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *conmon) title() string { return c.name }

func (c *conmon) cpu() (float64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return cpuOf(c.pids)
}

// conmonContainer is a container with its conmon.
type conmonContainer struct {
	c          *conmon
	id, bundle string
	pid        int // of conmon
}

func (c *conmon) start(ctx context.Context, id, share, log string, command ...string) (container, error) {
	c.mu.Lock()
	c.next++
	id = fmt.Sprintf("logs-%d-%s-%d", os.Getpid(), id, c.next)
	c.mu.Unlock()
	x := &conmonContainer{c: c, id: id, bundle: filepath.Join(c.dir, id)}
	if err := x.writeBundle(share, command); err != nil {
		return nil, err
	}
	pidFile := filepath.Join(x.bundle, "conmon.pid")
	said, err := os.Create(filepath.Join(x.bundle, "stderr")) // no pipe: the conmon that stays inherits it
	if err != nil {
		return nil, err
	}
	defer said.Close()
	cmd := exec.CommandContext(ctx, c.path, "--api-version", "1", "-c", id, "-u", id, "-n", id, "-b", x.bundle, "-r", c.runc,
		"--runtime-arg", "--root="+filepath.Join(c.dir, "runc"), "-p", filepath.Join(x.bundle, "pid"), "--conmon-pidfile", pidFile,
		"-l", "k8s-file:"+log, "--exit-dir", filepath.Join(c.dir, "exits"), "--socket-dir-path", filepath.Join(c.dir, "sockets"))
	cmd.Stderr = said
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("conmon %s: %w", id, err)
	}
	for _, file := range []string{pidFile, filepath.Join(x.bundle, "pid")} { // the second is written when it is created
		if err := waitFile(ctx, file); err != nil {
			text, _ := os.ReadFile(said.Name())
			return nil, fmt.Errorf("conmon %s: %w: %s", id, err, text)
		}
	}
	text, err := os.ReadFile(pidFile)
	if err != nil {
		return nil, err
	}
	if x.pid, err = strconv.Atoi(strings.TrimSpace(string(text))); err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.pids = append(c.pids, x.pid)
	c.mu.Unlock()
	return x, x.runc(ctx, "start", id)
}

func (x *conmonContainer) runc(ctx context.Context, args ...string) error {
	args = append([]string{"--root", filepath.Join(x.c.dir, "runc")}, args...)
	out, err := exec.CommandContext(ctx, x.c.runc, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("runc %s: %w: %s", args[2], err, out)
	}
	return nil
}

func (x *conmonContainer) writeBundle(share string, command []string) error {
	if err := os.MkdirAll(filepath.Join(x.bundle, "rootfs"), 0o755); err != nil {
		return err
	}
	spec := &specs.Spec{
		Version: "1.0.2", Root: &specs.Root{Path: "rootfs"},
		Process: &specs.Process{Cwd: "/", Args: command, Env: []string{"PATH=/"}},
		Mounts: []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"},
			{Destination: "/share", Type: "bind", Source: share, Options: []string{"rbind", "rw"}}},
		Linux: &specs.Linux{CgroupsPath: cgroups + "/" + x.id, Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}}},
	}
	body, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(x.bundle, "config.json"), body, 0o600)
}

// reopen tells conmon by its control FIFO, as CRI-O does; it does not answer.
func (x *conmonContainer) reopen(context.Context) error {
	f, err := os.OpenFile(filepath.Join(x.bundle, "ctl"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString("2 0 0\n")
	return err
}

// wait waits for what conmon tells of the end, after the last of the output.
func (x *conmonContainer) wait(ctx context.Context) error {
	return waitFile(ctx, filepath.Join(x.c.dir, "exits", x.id))
}

func (x *conmonContainer) remove(ctx context.Context) error {
	err := x.runc(ctx, "delete", "--force", x.id)
	x.c.mu.Lock()
	x.c.pids = slices.DeleteFunc(x.c.pids, func(pid int) bool { return pid == x.pid })
	x.c.mu.Unlock()
	harness.Reap()
	return err
}
