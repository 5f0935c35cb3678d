package imageservice

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantry-cri/gantry/imageservice/internal/manifest"
	"github.com/gantry-cri/gantry/imageservice/internal/meta"
)

// storedLayer is a verified layer on disk. refs counts the images, pulls and
// containers that need it; guarded by Service.mu.
type storedLayer struct {
	meta.Layer
	refs      int
	recorded  bool      // its record is on disk
	lost      bool      // the disk has perhaps not taken it
	keptUntil time.Time // while refs is 0
}

// image is never modified after it was put into the index, but replaced.
type image struct {
	Image
	record meta.Image
	config *manifest.Config
	raw    []byte         // the config as the registry has it
	layers []*storedLayer // lowest first
	root   rootMeta
	// artifact: its one layer has files to be mounted, and none to be run.
	artifact bool
}

// rootMeta is what the image says of its root directory.
type rootMeta struct {
	mode     uint32
	uid, gid int
}

// lower are the layers to stack, uppermost first. A layer that stands twice
// in an image says nothing new at the lower place, and overlayfs refuses it.
func lower(layers []*storedLayer) []*storedLayer {
	var stack []*storedLayer
	for _, l := range slices.Backward(layers) {
		if !slices.Contains(stack, l) {
			stack = append(stack, l)
		}
		if l.RootOpaque {
			break
		}
	}
	return stack
}

// Resolve finds an image by id, unique prefix of an id, tag, digest or short
// name. ErrNotFound when there is none.
func (s *Service) Resolve(_ context.Context, ref string) (Image, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	img, err := s.find(ref)
	if err != nil {
		return Image{}, err
	}
	return img.Image, nil
}

// find is called with mu held.
func (s *Service) find(ref string) (*image, error) {
	if img := s.images[ref]; img != nil {
		return img, nil
	}
	if img := s.images["sha256:"+ref]; img != nil {
		return img, nil
	}
	if name, err := s.reference(ref); err == nil {
		if img := s.images[s.names[name.String()]]; img != nil {
			return img, nil
		}
	}
	var found *image
	prefix := strings.TrimPrefix(ref, "sha256:")
	if len(prefix) >= minPrefix && isHex(prefix) {
		for id, img := range s.images {
			if !strings.HasPrefix(id[len("sha256:"):], prefix) {
				continue
			}
			if found != nil {
				return nil, fmt.Errorf("image id prefix %q is not unique: %w", ref, errdefs.ErrInvalidArgument)
			}
			found = img
		}
	}
	if found == nil {
		return nil, fmt.Errorf("image %q: %w", abbreviate(ref), errdefs.ErrNotFound)
	}
	return found, nil
}

// minPrefix is the shortest prefix of an image id that is taken for one.
const minPrefix = 4

func isHex(s string) bool {
	for _, c := range s {
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f') {
			return false
		}
	}
	return true
}

// put replaces the image of that id, with the names that it has now. Called
// with mu held.
func (s *Service) put(img *image) {
	next := *img
	next.RepoTags, next.RepoDigests, next.Pinned = nil, nil, false
	for name, id := range s.names {
		if id != img.ID {
			continue
		}
		if strings.Contains(name, "@") {
			next.RepoDigests = append(next.RepoDigests, name)
			continue
		}
		next.RepoTags = append(next.RepoTags, name)
		next.Pinned = next.Pinned || slices.ContainsFunc(s.cfg.Pinned, func(p string) bool {
			return match(p, name) || match(p, familiar(name))
		})
	}
	slices.Sort(next.RepoTags)
	slices.Sort(next.RepoDigests)
	s.images[img.ID] = &next
}

// name gives names to an image; other images lose them. Called with mu held.
func (s *Service) name(id string, names []string) {
	lost := make(map[string]bool)
	for _, n := range names {
		if old := s.names[n]; old != "" && old != id {
			lost[old] = true
		}
		s.names[n] = id
	}
	for old := range lost {
		if img := s.images[old]; img != nil {
			s.put(img)
		}
	}
}

// hold takes a reference to a layer if it is there.
func (s *Service) hold(key string) *storedLayer {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.layers[key]
	if l != nil {
		l.refs++
	}
	return l
}

// release drops references; layers that nobody needs any more are deleted in
// the background, those that never belonged to a whole image after a while.
func (s *Service) release(layers ...*storedLayer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.releaseLocked(layers)
}

func (s *Service) releaseLocked(layers []*storedLayer) {
	for _, l := range layers {
		if l == nil {
			continue
		}
		if l.refs--; l.refs == 0 {
			if l.keptUntil = (time.Time{}); !l.recorded && !l.lost {
				l.keptUntil = time.Now().Add(keepFor)
			}
			s.idle = append(s.idle, l)
			wake(s.reclaim)
		}
	}
}

// addLayer puts a layer into the index with one reference, the caller's.
// Called with mu held.
func (s *Service) addLayer(m meta.Layer) *storedLayer {
	l := &storedLayer{Layer: m, refs: 1}
	s.layers[m.Key] = l
	s.used.Bytes += m.Bytes
	s.used.Inodes += m.Inodes
	return l
}
