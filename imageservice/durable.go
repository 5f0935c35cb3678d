package imageservice

import (
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/imageservice/internal/meta"
)

// commit makes an image durable, then visible. It takes over the references
// to the layers, also on an error. root is Root, opened before anything of the
// image was written: the kernel tells a failed write once, to those who had a
// file open by then.
func (s *Service) commit(img *image, content map[digest.Digest][]byte, names []string, root *os.File) error {
	err := syncfs(root) // without a lock: it may take seconds
	if err == nil {
		err = s.record(img, content, names)
	} else {
		s.distrust()
	}
	if err != nil {
		s.release(img.layers...)
	}
	return err
}

func (s *Service) record(img *image, content map[digest.Digest][]byte, names []string) error {
	change := meta.Change{PutImage: &img.record, Content: content, PutNames: make(map[string]string)}
	for _, n := range names {
		change.PutNames[n] = img.ID
	}
	for _, l := range img.layers {
		change.PutLayers = append(change.PutLayers, l.Layer)
	}
	s.change.Lock()
	defer s.change.Unlock()
	if l := s.lost(img.layers); l != nil {
		return fmt.Errorf("layer %s was perhaps not written to the disk: %w", l.Key, errdefs.ErrAborted)
	}
	if err := s.meta.Update(change); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range img.layers {
		l.recorded = true
	}
	if old := s.images[img.ID]; old != nil { // pulled by another name meanwhile
		s.releaseLocked(img.layers)
		img = old
	}
	s.name(img.ID, names)
	s.put(img)
	return nil
}

// syncfs makes everything durable that was written to dir's file system.
func syncfs(dir *os.File) error {
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return fmt.Errorf("writing %s to disk: %w", dir.Name(), err)
	}
	return nil
}

// writeBackEvery is how many bytes of blobs may come before what was made of
// them is on its way to the disk.
const writeBackEvery = 16 << 20

// writeBackLoop writes files to the disk while pulls make more of them, until
// Close. The syncfs at the end of a pull, while which the processors have
// nothing to do, then finds the rest only: 10 instead of 170 ms of a pull of
// 0.65 s. Its own errors are not lost: commit is told of them as well.
func (s *Service) writeBackLoop() {
	for {
		select {
		case <-s.stop.Done():
			return
		case <-s.progress.enough:
		}
		root, err := os.Open(s.cfg.Root)
		if err != nil {
			continue
		}
		_ = syncfs(root)
		root.Close()
	}
}

// distrust gives up all layers that no record promises: nobody knows which of
// them the disk has not taken, and it will not be told a second time.
func (s *Service) distrust() {
	s.change.Lock()
	defer s.change.Unlock()
	var dirs []string
	s.mu.Lock()
	for _, l := range s.layers {
		if !l.recorded {
			l.lost, l.keptUntil = true, time.Time{}
		}
	}
	for diffID := range s.parked {
		dirs = append(dirs, s.giveUp(diffID))
	}
	s.mu.Unlock()
	for _, dir := range dirs {
		s.discardLogged(dir)
	}
	wake(s.reclaim)
}

// lost finds a layer that distrust has given up.
func (s *Service) lost(layers []*storedLayer) *storedLayer {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if i := slices.IndexFunc(layers, func(l *storedLayer) bool { return l.lost }); i >= 0 {
		return layers[i]
	}
	return nil
}
