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
)

// container is a writable root file system. On disk it is the directory
// containers/<id> with the upper and work directories and a file `layers`
// that names the image and the layers, so that they are kept over a restart
// even when the image is removed; and the mount at RunDir/<id>.
type container struct {
	op sync.Mutex // serialises Mount and Unmount; taken before Service.mu

	// Guarded by Service.mu.
	gone    bool // unmounted; no longer in the index
	mounted bool
	layers  []*storedLayer
	usage   Usage
	asked   time.Time // when somebody last wanted usage
}

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
	c.layers, c.mounted, c.gone = nil, false, true
	delete(s.containers, id)
}

// Mount makes the writable root file system of a container and returns its
// path. A second call for a mounted container returns the same path.
func (s *Service) Mount(_ context.Context, containerID, imageID string) (rootfs string, err error) {
	if !validID.MatchString(containerID) {
		return "", fmt.Errorf("container id %q: %w", abbreviate(containerID), errdefs.ErrInvalidArgument)
	}
	target := filepath.Join(s.cfg.RunDir, containerID)
	c := s.lock(containerID)
	defer c.op.Unlock()

	s.mu.Lock()
	if c.mounted {
		s.mu.Unlock()
		return target, nil
	}
	img, err := s.find(imageID)
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
	if err := s.mount(containerID, target, img); err != nil {
		err = fmt.Errorf("root file system of container %s: %w", containerID, err)
		if uerr := s.unmount(containerID); uerr != nil {
			return "", errors.Join(err, uerr)
		}
		s.forget(containerID, c)
		return "", err
	}
	s.mu.Lock()
	c.mounted = true
	c.usage = Usage{Bytes: 4096, Inodes: 1, At: time.Now()}
	s.mu.Unlock()
	return target, nil
}

func (s *Service) mount(id, target string, img *image) error {
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
	list := strings.Join(append([]string{img.ID}, keys(img.layers)...), "\n")
	if err := os.WriteFile(filepath.Join(dir, "layers"), []byte(list), 0o600); err != nil {
		return err
	}
	l := overlay.Layers{
		Lower: s.dirs(lower(img.layers)),
		Upper: filepath.Join(dir, "upper"),
		Work:  filepath.Join(dir, "work"),
	}
	for _, d := range []string{l.Upper, l.Work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	// The root of an overlay has the mode and owner of its upper directory.
	if img.root.uid != 0 || img.root.gid != 0 {
		if err := os.Lchown(l.Upper, img.root.uid, img.root.gid); err != nil {
			return err
		}
	}
	if err := unix.Chmod(l.Upper, img.root.mode); err != nil {
		return &os.PathError{Op: "chmod", Path: l.Upper, Err: err}
	}
	if err := os.Mkdir(target, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return s.mounter.Mount(l, target)
}

// Unmount unmounts the root of a container and deletes what it wrote; the
// deletion itself goes on in the background. nil when there is none.
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

// unmount removes what Mount makes, whatever of it there is.
func (s *Service) unmount(id string) error {
	target := filepath.Join(s.cfg.RunDir, id)
	if err := overlay.Unmount(target); err != nil {
		return err
	}
	if err := os.Remove(target); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return s.discard(s.path(containersDir, id))
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
