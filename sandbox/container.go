package sandbox

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/gantry-cri/gantry/sandbox/cgroup"
	"github.com/gantry-cri/gantry/sandbox/supervisor"
)

// Runtime is an OCI runtime, such as runc, as a handler of the configuration names it.
type Runtime struct {
	Handler string   // its name
	Path    string   // absolute path of the binary
	Root    string   // its state directory, absolute; "" = runtimes/<Handler> in the run directory
	Options []string // further global options of its command line
	Systemd bool     // it makes cgroups through systemd
}

// Container is what [Host.Start] starts: a bundle made by [Host.WriteBundle].
type Container struct {
	ID      string
	Runtime Runtime
	Cgroup  string // path of its cgroup below the hierarchies' roots, beginning with /
	LogDir  string // "" = no log
	LogPath string // relative, beneath LogDir

	Terminal, Stdin, StdinOnce bool

	IDs IDMap // of the user namespace that it is in
}

func (h *Host) bundle(id string) string { return filepath.Join(h.containersDir(), id) }

// WriteBundle makes the container's OCI bundle, whose root file system lies
// elsewhere (spec.Root.Path is absolute). It holds the environment, hence 0600.
func (h *Host) WriteBundle(id string, spec *specs.Spec) error {
	data, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("encoding the OCI spec: %w", err)
	}
	dir := h.bundle(id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the bundle: %w", err)
	}
	tmp := filepath.Join(dir, "config.json.tmp")
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return fmt.Errorf("writing the bundle: %w", err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, "config.json")); err != nil {
		return fmt.Errorf("writing the bundle: %w", err)
	}
	return nil
}

// ReadBundle returns the OCI spec of a container.
func (h *Host) ReadBundle(id string) (*specs.Spec, error) {
	data, err := os.ReadFile(filepath.Join(h.bundle(id), "config.json"))
	if err != nil {
		return nil, fmt.Errorf("reading the bundle: %w", err)
	}
	spec := new(specs.Spec)
	if err := json.Unmarshal(data, spec); err != nil {
		return nil, fmt.Errorf("reading the bundle: %w", err)
	}
	return spec, nil
}

// Start has the supervisor run the container's OCI runtime and returns the
// process id of its first process. When it fails, or ctx ends first, nothing
// of the container runs, and Start may be called again.
func (h *Host) Start(ctx context.Context, c Container) (pid int, err error) {
	root := h.runtimeRoot(c.Runtime)
	if c.LogDir == "" {
		c.LogPath = "" // a path beneath nothing
	}
	return h.sup.Run(ctx, supervisor.RunRequest{
		ID: c.ID,
		Runtime: supervisor.Runtime{
			Path: c.Runtime.Path, Root: root, Options: c.Runtime.Options, SystemdCgroup: c.Runtime.Systemd,
		},
		Bundle:      h.bundle(c.ID),
		LogDir:      c.LogDir,
		LogPath:     c.LogPath,
		LogMax:      h.maxLog,
		Terminal:    c.Terminal,
		Stdin:       c.Stdin,
		StdinOnce:   c.StdinOnce,
		StdioUID:    c.IDs.UID,
		StdioGID:    c.IDs.GID,
		OOMFile:     cgroup.OOMFile(c.Cgroup),
		CgroupProcs: cgroup.ProcsFiles(c.Cgroup),
	})
}

// UpdateContainer has the OCI runtime of a running container change its
// limits, all of which resources has: for systemd's sake, whose properties the
// unit's limits are. After an error some may have been changed.
func (h *Host) UpdateContainer(ctx context.Context, id string, resources *specs.LinuxResources) error {
	data, err := json.Marshal(resources)
	if err != nil {
		return fmt.Errorf("encoding the limits: %w", err)
	}
	return h.sup.Update(ctx, id, data)
}

// CheckpointContainer has the OCI runtime dump the container, which runs on;
// the two folders and errors are as [supervisor.Client.Checkpoint]'s.
func (h *Host) CheckpointContainer(ctx context.Context, id, images, work string) error {
	return h.sup.Checkpoint(ctx, id, images, work)
}

// Signal sends sig to the container's first process. A container that has
// ended, or that the supervisor does not know, is errdefs.ErrNotFound.
func (h *Host) Signal(ctx context.Context, id string, sig syscall.Signal) error {
	return h.sup.Kill(ctx, id, sig, false)
}

// Kill sends SIGKILL to every process of the container; errors are as [Host.Signal]'s.
func (h *Host) Kill(ctx context.Context, id string) error {
	return h.sup.Kill(ctx, id, syscall.SIGKILL, true)
}

// ReopenLog lets the container's log go on in a new file at its path.
func (h *Host) ReopenLog(ctx context.Context, id string) error { return h.sup.ReopenLog(ctx, id) }

// Undo makes a container that was started one that can be started again. Nothing there is success.
func (h *Host) Undo(ctx context.Context, id string) error { return h.sup.Delete(ctx, id) }

// DeleteContainer kills what still runs of the container, has the OCI runtime
// delete it and removes its bundle. Nothing there is success.
func (h *Host) DeleteContainer(ctx context.Context, id string) error {
	if err := h.sup.Delete(ctx, id); err != nil {
		return err
	}
	return h.removeBundle(id)
}

// DeleteForgotten has the OCI runtime delete a container, with all its processes, that
// the supervisor does not know (any more: its record was damaged). Nothing there is success.
func (h *Host) DeleteForgotten(ctx context.Context, id string, r Runtime) error {
	root := h.runtimeRoot(r)
	if _, err := os.Lstat(filepath.Join(root, id)); errors.Is(err, fs.ErrNotExist) || r.Path == "" {
		return nil
	}
	options := append([]string{"--root", root}, r.Options...)
	if r.Systemd {
		options = append(options, "--systemd-cgroup")
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	if _, err := ask(ctx, r.Path, options, "delete", "--force", id); err != nil {
		return fmt.Errorf("deleting container %s, which the supervisor does not know: %w", id, err)
	}
	return nil
}

func (h *Host) runtimeRoot(r Runtime) string {
	return cmp.Or(r.Root, filepath.Join(h.runDir, "runtimes", r.Handler))
}

func (h *Host) removeBundle(id string) error {
	dir := h.bundle(id)
	if err := unmount(filepath.Join(dir, targetPin)); err != nil {
		return fmt.Errorf("removing the bundle: %w", err)
	}
	if err := os.Remove(filepath.Join(dir, "config.json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the bundle: %w", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("removing the bundle: %w", err)
	}
	return nil
}
