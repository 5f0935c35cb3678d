package imageservice

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/imageservice/internal/overlay"
	"github.com/gantry-cri/gantry/imageservice/internal/tree"
)

// container is a writable root file system, and the image volumes that lie
// below it (volume.go). On disk it is the directory containers/<id> with the
// upper and work directories and a file `layers` that names the image and the
// layers, so that they are kept over a restart even when the image is removed;
// and the mounts below RunDir/<id>. That directory keeps others away from the
// setuid programs of the image (CVE-2021-41103); only the root of the
// container's user namespace, if it has one, can pass it.
type container struct {
	op    sync.Mutex // serialises Mount, MountVolume and Unmount; taken before Service.mu
	idmap *IDMap     // of the mount; guarded by op, as label
	label string

	// Guarded by Service.mu.
	gone        bool // unmounted; no longer in the index
	mounted     bool
	volumes     map[string]bool // names of those that are mounted
	layers      []*storedLayer  // of the root and of the volumes
	usage       Usage
	measure     bool      // somebody wants to know usage
	measureFrom time.Time // not before
}

// IDMap is the mapping of a pod's user namespace.
type IDMap = overlay.IDMap

// IDRange is a part of it.
type IDRange = overlay.IDRange

// A container id becomes the name of a directory.
var validID = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

// lock returns the container of an id, locked, made if absent.
func (s *Service) lock(id string) *container {
	for {
		s.mu.Lock()
		c := s.containers[id]
		if c == nil {
			c = &container{}
			s.containers[id] = c
		}
		s.mu.Unlock()
		c.op.Lock()
		s.mu.RLock()
		gone := c.gone
		s.mu.RUnlock()
		if !gone {
			return c
		}
		c.op.Unlock()
	}
}

// forget takes a container out of the index and gives its layers back. Called
// with op held.
func (s *Service) forget(id string, c *container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.releaseLocked(c.layers)
	c.layers, c.volumes, c.mounted, c.gone = nil, nil, false, true
	delete(s.containers, id)
}

// Mount makes the writable root file system of a container and returns its
// path. A second call for a mounted container returns the same path.
func (s *Service) Mount(ctx context.Context, containerID, imageID string) (rootfs string, err error) {
	return s.MountMapped(ctx, containerID, imageID, nil, "")
}

// MountMapped is Mount for a container in a user namespace: what belongs to
// someone in the image belongs to whom the mapping says on the host. Where the
// kernel or the file system has no idmapped mounts, all files of the image are
// copied for the container. With a label all files have that SELinux label.
func (s *Service) MountMapped(ctx context.Context, containerID, imageID string, m *IDMap, label string) (rootfs string, err error) {
	if !validID.MatchString(containerID) {
		return "", fmt.Errorf("container id %q: %w", abbreviate(containerID), errdefs.ErrInvalidArgument)
	}
	if m != nil {
		if err := m.Check(); err != nil {
			return "", fmt.Errorf("container %s: %w: %w", containerID, err, errdefs.ErrInvalidArgument)
		}
	}
	target := s.mountPath(containerID, rootName)
	c := s.lock(containerID)
	defer c.op.Unlock()

	s.mu.Lock()
	if c.mounted {
		s.mu.Unlock()
		return target, nil
	}
	img, err := s.find(imageID)
	if err == nil && img.artifact {
		err = fmt.Errorf("%s is an OCI artifact, it can be mounted as a volume but not be run: %w", img.ID, errdefs.ErrFailedPrecondition)
	}
	stale := c.layers // of a mount that a reboot has ended
	if err == nil {
		for _, l := range img.layers {
			l.refs++
		}
		c.layers = img.layers
	}
	s.releaseLocked(stale)
	s.mu.Unlock()
	if err != nil {
		s.forget(containerID, c)
		return "", err
	}
	if err := s.mount(ctx, containerID, target, img, m, label); err != nil {
		err = fmt.Errorf("root file system of container %s: %w", containerID, err)
		if uerr := s.unmount(containerID); uerr != nil {
			return "", errors.Join(err, uerr)
		}
		s.forget(containerID, c)
		return "", err
	}
	c.idmap, c.label = m, label
	s.mu.Lock()
	c.mounted = true
	c.usage = Usage{Bytes: 4096, Inodes: 1, At: time.Now()}
	s.mu.Unlock()
	return target, nil
}

func (s *Service) mount(ctx context.Context, id, target string, img *image, m *IDMap, label string) error {
	if err := s.makeRunDir(id, m); err != nil {
		return err
	}
	dir := s.path(containersDir, id)
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, os.ErrExist) { // left by a boot that has ended
		if err := s.discard(dir); err != nil {
			return err
		}
		err = os.Mkdir(dir, 0o700)
	}
	if err != nil {
		return err
	}
	// First of all, so that whatever else is there can be told after a crash.
	if err := writeLayers(dir, img); err != nil {
		return err
	}
	l := overlay.Layers{
		Lower: s.dirs(lower(img.layers)),
		Upper: filepath.Join(dir, "upper"),
		Work:  filepath.Join(dir, "work"),
		Label: label,
	}
	// The root of an overlay has the mode and owner of its upper directory.
	root := img.root
	if m != nil {
		uid, gid := m.Host(uint32(root.uid), uint32(root.gid))
		root.uid, root.gid = int(uid), int(gid)
	}
	if err := errors.Join(makeRoot(l.Upper, root), os.Mkdir(l.Work, 0o755)); err != nil {
		return err
	}
	err = s.stack(id, l, target, m)
	if !errors.Is(err, overlay.ErrNoIDMap) {
		return err
	}
	s.log.Info("Copying an image for one container, since its layers cannot be mapped to a user namespace", "container", id, "imageID", img.ID, "because", err)
	if err := s.mounter.Mount(l, target); err != nil {
		return err
	}
	return tree.Shift(ctx, target, m.Host)
}

// rootName is that of the root among a container's mounts; volumes have the id
// of their image, and mapName is one of [overlay.Layers].
const (
	rootName = "rootfs"
	mapName  = "map"
)

func (s *Service) mountPath(containerID, name string) string {
	return filepath.Join(s.cfg.RunDir, containerID, name)
}

// makeRunDir makes the directory that a container's mounts lie in.
func (s *Service) makeRunDir(id string, m *IDMap) error {
	dir := filepath.Join(s.cfg.RunDir, id)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if m == nil {
		return nil
	}
	_, gid := m.Host(0, 0)
	if err := os.Lchown(dir, -1, int(gid)); err != nil {
		return err
	}
	return os.Chmod(dir, 0o710)
}

// writeLayers writes down what a mount is of, for recover.
func writeLayers(dir string, img *image) error {
	list := strings.Join(append([]string{img.ID}, keys(img.layers)...), "\n")
	return os.WriteFile(filepath.Join(dir, "layers"), []byte(list), 0o600)
}

// makeRoot makes the directory whose mode and owner a mount shows at its root.
func makeRoot(dir string, root rootMeta) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if root.uid != 0 || root.gid != 0 {
		if err := os.Lchown(dir, root.uid, root.gid); err != nil {
			return err
		}
	}
	if err := unix.Chmod(dir, root.mode); err != nil {
		return &os.PathError{Op: "chmod", Path: dir, Err: err}
	}
	return nil
}

// stack mounts layers of a container at target, which it makes.
func (s *Service) stack(id string, l overlay.Layers, target string, m *IDMap) error {
	if err := os.Mkdir(target, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if m == nil {
		return s.mounter.Mount(l, target)
	}
	l.Map, l.Scratch = m, s.mountPath(id, mapName) // unmount finds it after a crash
	if err := os.Mkdir(l.Scratch, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return errors.Join(s.mounter.Mount(l, target), os.Remove(l.Scratch))
}

// Unmount unmounts the volumes and the root of a container and deletes what it
// wrote; the deletion itself goes on in the background. nil when there is none.
func (s *Service) Unmount(_ context.Context, containerID string) error {
	if !validID.MatchString(containerID) {
		return fmt.Errorf("container id %q: %w", abbreviate(containerID), errdefs.ErrInvalidArgument)
	}
	c := s.lock(containerID)
	defer c.op.Unlock()
	if err := s.unmount(containerID); err != nil {
		return fmt.Errorf("root file system of container %s: %w", containerID, err)
	}
	s.forget(containerID, c)
	return nil
}

// unmount removes what Mount and MountVolume make, whatever of it there is.
func (s *Service) unmount(id string) error {
	for _, name := range s.old[id] { // before its directory is read, which is the container's root
		if err := drop(filepath.Join(s.cfg.RunDir, name)); err != nil {
			return err
		}
	}
	dir := filepath.Join(s.cfg.RunDir, id)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if err := drop(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return s.discard(s.path(containersDir, id))
}

// drop unmounts and removes a mount point.
func drop(target string) error {
	if err := overlay.Unmount(target); err != nil {
		return err
	}
	if err := os.Remove(target); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Retain unmounts and deletes the root of every container that is not listed.
func (s *Service) Retain(ctx context.Context, containerIDs []string) error {
	keep := make(map[string]bool, len(containerIDs))
	for _, id := range containerIDs {
		keep[id] = true
	}
	s.mu.RLock()
	var drop []string
	for id := range s.containers {
		if !keep[id] {
			drop = append(drop, id)
		}
	}
	s.mu.RUnlock()
	var errs []error
	for _, id := range drop {
		errs = append(errs, s.Unmount(ctx, id))
	}
	return errors.Join(errs...)
}
