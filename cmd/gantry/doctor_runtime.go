package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/cmd/gantry/config"
	"github.com/gantry-cri/gantry/sandbox"
	"github.com/gantry-cri/gantry/sandbox/cgroup"
)

const (
	toolTimeout = 10 * time.Second // for one call of an OCI runtime
	toolOutput  = 64 << 10         // bytes of its output that are kept
)

// checkRuntimes looks at each configured runtime and has it start a container
// with rootfs. dir is for its files.
func checkRuntimes(ctx context.Context, r *report, cfg config.Config, dir, rootfs string) {
	// The container is an orphan once its runtime has detached. It is to be
	// reaped here, not by whatever process 1 is.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		r.warn("runtimes", fmt.Sprintf("cannot become a subreaper: %v", err))
	}
	missing := cfg.Missing()
	for _, name := range slices.Sorted(maps.Keys(cfg.Runtimes)) {
		what, bad := "runtime "+name, r.warn // pods of other runtimes run
		if name == cfg.DefaultRuntime {
			what, bad = what+" (default)", r.fail
		}
		rt := cfg.Runtimes[name]
		if err := missing[name]; err != nil {
			bad(what, err.Error())
			continue
		}
		features, err := sandbox.ProbeRuntime(ctx, rt.Path, rt.Options)
		if err != nil {
			bad(what, fmt.Sprintf("%v; install a working one, or correct its options", err))
			continue
		}
		known := judge(features.Program, features.Version)
		if known.open {
			r.warn(what, known.detail)
		}
		probe := containerProbe{
			path: rt.Path, options: rt.Options, dir: filepath.Join(dir, "runtime-"+name), rootfs: rootfs,
			ociVersion: features.OCIVersion, systemd: cfg.CgroupDriver == config.Systemd,
		}
		if err := probe.run(ctx); err != nil {
			bad(what, fmt.Sprintf("%s starts no container: %v", rt.Path, err))
			continue
		}
		r.ok(what, fmt.Sprintf("%s starts a container (%s, OCI %s)", rt.Path, strings.TrimSpace(features.Program+" "+features.Version), features.OCIVersion))
		if known.detail != "" && !known.open {
			r.ok(what, known.detail)
		}
	}
}

// containerProbe starts one container as Gantry would: run --detach, kill, delete.
type containerProbe struct {
	path, dir, rootfs, ociVersion string
	options                       []string
	systemd                       bool
}

func (p containerProbe) run(ctx context.Context) (err error) {
	bundle := filepath.Join(p.dir, "bundle")
	if err := os.MkdirAll(bundle, 0o700); err != nil {
		return err
	}
	id := fmt.Sprintf("gantry-doctor-%d", os.Getpid())
	cgroups := []string{"/" + id, "/" + id + "/" + filepath.Base(p.dir)}
	spec, err := json.Marshal(p.spec(cgroups[1], id))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), spec, 0o600); err != nil {
		return err
	}
	pidFile := filepath.Join(p.dir, "pid")
	defer func() {
		// Whatever happened, and whether somebody still waits for it.
		undo := context.WithoutCancel(ctx)
		_, delErr := p.call(undo, "delete", "--force", id)
		if err == nil && delErr != nil {
			err = fmt.Errorf("deleting the container: %w", delErr)
		}
		reap(pidFile)
		for _, path := range slices.Backward(cgroups) {
			err = errors.Join(err, cgroup.RemoveEmpty(path))
		}
	}()
	if _, err := p.call(ctx, "run", "--detach", "--pid-file", pidFile, "--bundle", bundle, id); err != nil {
		return err
	}
	if _, err := p.call(ctx, "kill", id, "KILL"); err != nil {
		return fmt.Errorf("killing the container: %w", err)
	}
	return nil
}

// spec uses what Gantry's containers use: namespaces, cgroup limits, device
// rules, seccomp, masked paths, a read-only root.
func (p containerProbe) spec(cgroupPath, id string) *specs.Spec {
	limit, shares, pids := int64(64<<20), uint64(2), int64(16)
	if p.systemd {
		cgroupPath = "system.slice:gantry-doctor:" + id
	}
	nosuid := []string{"nosuid", "noexec", "nodev"}
	return &specs.Spec{
		Version:  p.ociVersion,
		Hostname: "doctor",
		Root:     &specs.Root{Path: p.rootfs, Readonly: true},
		Process:  &specs.Process{Args: []string{"/init"}, Cwd: "/", NoNewPrivileges: true, Capabilities: &specs.LinuxCapabilities{}},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: nosuid},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755", "size=65536k"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: append([]string{"ro"}, nosuid...)},
		},
		Linux: &specs.Linux{
			CgroupsPath: cgroupPath,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
			},
			Resources: &specs.LinuxResources{
				Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
				Memory:  &specs.LinuxMemory{Limit: &limit},
				CPU:     &specs.LinuxCPU{Shares: &shares},
				Pids:    &specs.LinuxPids{Limit: &pids},
			},
			Seccomp: &specs.LinuxSeccomp{
				DefaultAction: specs.ActAllow,
				Syscalls:      []specs.LinuxSyscall{{Names: []string{"kexec_load"}, Action: specs.ActErrno}},
			},
			MaskedPaths:   []string{"/proc/kcore"},
			ReadonlyPaths: []string{"/proc/sys"},
		},
	}
}

// call runs the runtime; its error is what it wrote to its log, which is more than its exit status.
func (p containerProbe) call(ctx context.Context, args ...string) (string, error) {
	global := []string{"--root", filepath.Join(p.dir, "state")}
	if p.systemd {
		global = append(global, "--systemd-cgroup")
	}
	return tool(ctx, p.dir, p.path, slices.Concat(global, p.options, args)...)
}

// reap waits for the container's process, so that the doctor leaves no zombie.
func reap(pidFile string) {
	data, err := os.ReadFile(pidFile)
	if err != nil {
		return
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || pid <= 1 {
		return
	}
	for range 100 { // a second: it has been killed
		var status unix.WaitStatus
		if got, err := unix.Wait4(pid, &status, unix.WNOHANG, nil); got != 0 || err != nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// tool runs a program to its end, with bounds on its time and output. The
// output goes through a file: a container that it starts may hold a pipe open.
func tool(ctx context.Context, dir, path string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, toolTimeout)
	defer cancel()
	f, err := os.CreateTemp(dir, "gantry-doctor-output-")
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close(); _ = os.Remove(f.Name()) }()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdout, cmd.Stderr = f, f
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	if bus := os.Getenv("DBUS_SYSTEM_BUS_ADDRESS"); bus != "" { // for --systemd-cgroup
		cmd.Env = append(cmd.Env, "DBUS_SYSTEM_BUS_ADDRESS="+bus)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	err = cmd.Run()
	out := make([]byte, toolOutput)
	n, _ := f.ReadAt(out, 0)
	text := string(bytes.TrimSpace(out[:n]))
	switch {
	case ctx.Err() != nil:
		return "", fmt.Errorf("%s %s: no end within %v: %w", path, args[0], toolTimeout, ctx.Err())
	case err != nil && text != "":
		return "", fmt.Errorf("%s (%w)", text, err)
	case err != nil:
		return "", err
	}
	return text, nil
}
