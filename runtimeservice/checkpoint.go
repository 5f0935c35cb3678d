package runtimeservice

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/runtimeservice/lifecycle"
)

// Names in a checkpoint's archive, as checkpointctl, CRI-O and Podman have them.
const (
	checkpointImages  = "checkpoint" // CRIU's
	checkpointLog     = "dump.log"
	checkpointStats   = "stats-dump"
	checkpointConfig  = "config.dump"
	checkpointSpec    = "spec.dump"
	checkpointMounts  = "bind.mounts"
	checkpointChanges = "rootfs-diff.tar"
	checkpointDeleted = "deleted.files"
)

// CheckpointContainer writes a running container's memory and processes, as
// CRIU dumps them, and what it has written, to a tar archive. The container is
// stopped while CRIU works, and then runs on. The archive is there as a whole
// or not at all, after a crash, too; what lies at its place is not replaced.
func (s *containers) CheckpointContainer(ctx context.Context, req *runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error) {
	c, err := s.index.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if t := seconds(req.GetTimeout()); t > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, t)
		defer cancel()
	}
	if err := c.op.lock(ctx); err != nil {
		return nil, fmt.Errorf("container %s is busy: %w", c.id, err)
	}
	defer c.op.unlock()
	if err := s.checkpoint(ctx, c, req.GetLocation()); err != nil {
		return nil, fmt.Errorf("checkpointing container %s (%s): %w", c.key.name, c.id, partMissing(err))
	}
	return &runtimeapi.CheckpointContainerResponse{}, nil
}

// checkpoint is called with c.op held.
func (s *containers) checkpoint(ctx context.Context, c *container, location string) (err error) {
	if s.cfg.MaxCheckpoint == 0 {
		return fmt.Errorf("checkpoints are off, which fill disks with what containers hold in memory: allow them by max_checkpoint in gantry's configuration: %w", errdefs.ErrFailedPrecondition)
	}
	if state := c.getState(); state != lifecycle.ContainerRunning {
		return fmt.Errorf("it is %v: %w", state, errdefs.ErrFailedPrecondition)
	}
	used, err := c.meter.read(c.cgroup)
	if err != nil {
		return err
	}
	if used.Mem.RSS > uint64(s.cfg.MaxCheckpoint) { // about what CRIU will write
		return s.tooLarge(used.Mem.RSS)
	}
	out, err := newArchiveFile(location)
	if err != nil {
		return fmt.Errorf("location %q: %w", location, err)
	}
	defer out.Close()
	// On the disk, not in the run directory: it gets as much as the container has memory.
	dir := filepath.Join(s.checkpointsDir(), c.id)
	if err := errors.Join(removeDumps(dir), os.MkdirAll(filepath.Join(dir, checkpointImages), 0o700)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, removeDumps(dir)) }()
	if err := s.host.CheckpointContainer(ctx, c.id, filepath.Join(dir, checkpointImages), dir); err != nil {
		if said := dumpErrors(filepath.Join(dir, checkpointLog)); said != "" {
			err = fmt.Errorf("%w (CRIU: %s)", err, said)
		}
		return err
	}
	files, err := s.describe(ctx, c)
	if err != nil {
		return err
	}
	changes, err := os.OpenFile(filepath.Join(dir, checkpointChanges), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer changes.Close()
	deleted, err := s.images.WriteChanges(ctx, &upTo{changes, s.cfg.MaxCheckpoint, s.core}, c.id)
	if err != nil {
		return err
	}
	if len(deleted) > 0 {
		files[checkpointDeleted] = deleted
	}
	if err := pack(ctx, &upTo{out, s.cfg.MaxCheckpoint, s.core}, dir, files); err != nil {
		return err
	}
	if err := out.commit(); err != nil {
		return fmt.Errorf("location %q: %w", location, err)
	}
	return nil
}

// tooLarge refuses a checkpoint that has n bytes already (CVE-2025-0426).
func (c *core) tooLarge(n uint64) error {
	return fmt.Errorf("the checkpoint would have %d bytes or more, max_checkpoint in gantry's configuration allows %d: %w", n, c.cfg.MaxCheckpoint, errdefs.ErrResourceExhausted)
}

// upTo passes on no more than left bytes.
type upTo struct {
	w    io.Writer
	left int64
	c    *core
}

func (u *upTo) Write(p []byte) (int, error) {
	if u.left -= int64(len(p)); u.left < 0 {
		return 0, u.c.tooLarge(uint64(u.c.cfg.MaxCheckpoint - u.left))
	}
	return u.w.Write(p)
}

// removeDumps removes a directory of dumps, which also ends one that goes on after its caller's end: it finds no place
// for its next file. Until then it may make one between those that are there and the directory.
func removeDumps(dir string) error {
	err := os.RemoveAll(dir)
	for tries := 0; errors.Is(err, unix.ENOTEMPTY) && tries < 100; tries++ {
		time.Sleep(time.Millisecond)
		err = os.RemoveAll(dir)
	}
	return err
}

// checkpointsDir holds what checkpoints under way have: sweep makes it anew.
func (c *core) checkpointsDir() string { return filepath.Join(c.cfg.Root, "checkpoints") }

// checkpointedContainer is config.dump.
type checkpointedContainer struct {
	ID             string    `json:"id"`
	Name           string    `json:"name"`
	RootfsImage    string    `json:"rootfsImage,omitempty"`
	RootfsImageRef string    `json:"rootfsImageRef,omitempty"`
	ImageName      string    `json:"rootfsImageName,omitempty"`
	Runtime        string    `json:"runtime,omitempty"`
	Created        time.Time `json:"createdTime"`
	Checkpointed   time.Time `json:"checkpointedTime"`
	Restored       time.Time `json:"restoredTime"`
	IsRestored     bool      `json:"restored"`
}

// checkpointedMount is one of bind.mounts.
type checkpointedMount struct {
	Source      string `json:"source"`
	Destination string `json:"destination"`
	FileType    string `json:"file_type"`
	Permissions uint32 `json:"permissions"`
}

// describe is the archive's files that say what the container is.
func (s *containers) describe(ctx context.Context, c *container) (map[string]any, error) {
	spec, err := s.host.ReadBundle(c.id)
	if err != nil {
		return nil, err
	}
	files := map[string]any{
		checkpointSpec: spec,
		checkpointConfig: checkpointedContainer{
			ID: c.id, Name: c.key.name, RootfsImage: c.imageName, RootfsImageRef: c.imageID, ImageName: c.imageName,
			Runtime: filepath.Base(c.runtime.Path), Created: time.Unix(0, c.createdAt).UTC(), Checkpointed: time.Unix(0, s.index.now()).UTC(),
		},
	}
	mounts, err := s.bindMounts(ctx, spec)
	if len(mounts) > 0 {
		files[checkpointMounts] = mounts
	}
	return files, err
}

func (s *containers) bindMounts(ctx context.Context, spec *specs.Spec) (mounts []checkpointedMount, err error) {
	var binds []specs.Mount
	var sources []string
	for _, m := range spec.Mounts {
		if m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind") {
			binds, sources = append(binds, m), append(sources, m.Source)
		}
	}
	modes, err := s.host.Paths().Modes(ctx, sources)
	if err != nil {
		return nil, err
	}
	for i, m := range binds {
		if modes[i] == 0 {
			continue // it has been removed since; the container has it still
		}
		kind := "file"
		if modes[i]&unix.S_IFMT == unix.S_IFDIR {
			kind = "directory"
		}
		mounts = append(mounts, checkpointedMount{m.Source, m.Destination, kind, modes[i] & 0o777})
	}
	return mounts, nil
}

// pack writes the archive of what lies in dir and of files, by name, as JSON.
func pack(ctx context.Context, w io.Writer, dir string, files map[string]any) error {
	tw := tar.NewWriter(w)
	var names []string
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		data, err := json.Marshal(files[name])
		if err != nil {
			return fmt.Errorf("encoding %s: %w", name, err)
		}
		if err := entry(ctx, tw, name, bytes.NewReader(data), int64(len(data))); err != nil {
			return err
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	images, err := os.ReadDir(filepath.Join(dir, checkpointImages))
	if err != nil {
		return err
	}
	names = []string{checkpointLog, checkpointStats, checkpointChanges}
	for _, e := range images {
		if e.Type().IsRegular() { // all of CRIU's are
			names = append(names, path.Join(checkpointImages, e.Name()))
		}
	}
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: checkpointImages + "/", Mode: 0o700}); err != nil {
		return err
	}
	for _, name := range names {
		f, err := root.Open(name)
		if errors.Is(err, os.ErrNotExist) && name == checkpointStats {
			continue // of a CRIU without statistics
		}
		if err != nil {
			return err
		}
		info, err := f.Stat()
		if err == nil {
			err = entry(ctx, tw, name, f, info.Size())
		}
		_ = f.Close()
		if err != nil {
			return err
		}
	}
	return tw.Close()
}

func entry(ctx context.Context, tw *tar.Writer, name string, r io.Reader, size int64) error {
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: size}); err != nil {
		return err
	}
	const step = 4 << 20
	for left := size; left > 0; left -= min(left, step) {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if _, err := io.CopyN(tw, r, min(left, step)); err != nil {
			return fmt.Errorf("packing %s: %w", name, err)
		}
	}
	return nil
}

// dumpErrors is the last errors in CRIU's log, "" if there are none.
func dumpErrors(file string) string {
	const most, lines, length = 64 << 10, 3, 1 << 10
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > most {
		_, _ = f.Seek(-most, io.SeekEnd)
	}
	data, _ := io.ReadAll(io.LimitReader(f, most))
	var found []string
	for line := range strings.Lines(string(data)) {
		if _, text, ok := strings.Cut(line, "Error "); ok {
			found = append(found, strings.TrimSpace(text))
		}
	}
	text := strings.Join(found[max(0, len(found)-lines):], "; ")
	return strings.ToValidUTF8(text[:min(len(text), length)], "?")
}

// archiveFile is a file that has no name until it is committed, so that a
// crash leaves nothing of it.
type archiveFile struct {
	*os.File
	dir  *os.File
	name string
}

// newArchiveFile makes the file that is to be at location.
func newArchiveFile(location string) (*archiveFile, error) {
	parent, name := filepath.Split(filepath.Clean(location))
	if name == "" {
		return nil, fmt.Errorf("it is no file: %w", errdefs.ErrInvalidArgument)
	}
	fd, err := unix.Open(parent, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("its folder must be there: %w: %w", &os.PathError{Op: "open", Path: parent, Err: err}, errdefs.ErrInvalidArgument)
	}
	a := &archiveFile{dir: os.NewFile(uintptr(fd), parent), name: name}
	var st unix.Stat_t
	if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil {
		_ = a.dir.Close()
		return nil, fmt.Errorf("it is there already, remove it or name another: %w", errdefs.ErrAlreadyExists)
	}
	fd, err = unix.Openat(fd, ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		_ = a.dir.Close()
		return nil, fmt.Errorf("making a file (O_TMPFILE) in %s: %w: %w", parent, err, errdefs.ErrFailedPrecondition)
	}
	a.File = os.NewFile(uintptr(fd), location)
	return a, nil
}

// commit gives the file its name, durably.
func (a *archiveFile) commit() error {
	if err := a.Sync(); err != nil {
		return err
	}
	err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", a.Fd()), int(a.dir.Fd()), a.name, unix.AT_SYMLINK_FOLLOW)
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("somebody has made it meanwhile: %w", errdefs.ErrAlreadyExists)
	}
	if err != nil {
		return &os.LinkError{Op: "link", Old: "the archive", New: a.Name(), Err: err}
	}
	return nil
}

func (a *archiveFile) Close() error { return errors.Join(a.File.Close(), a.dir.Close()) }

// CheckpointPod is refused.
func (unbuilt) CheckpointPod(context.Context, *runtimeapi.CheckpointPodRequest) (*runtimeapi.CheckpointPodResponse, error) {
	return nil, fmt.Errorf("this version of gantry makes no checkpoints of pods, the pod runs on as it was: checkpoint its containers: %w", errdefs.ErrNotImplemented)
}

// RestorePod is refused.
func (unbuilt) RestorePod(context.Context, *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	return nil, fmt.Errorf("this version of gantry restores no checkpoints: run the pod anew: %w", errdefs.ErrNotImplemented)
}
