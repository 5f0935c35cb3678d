package imageservice

import (
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/imageservice/internal/layer"
	"github.com/gantry-cri/gantry/imageservice/internal/meta"
)

// keepFor is how long a layer stays that was fetched for an image that then
// failed. The kubelet tries again within five minutes.
const keepFor = 15 * time.Minute

// fetched is a layer that was unpacked and verified, and must be completed for
// the layers below it.
type fetched struct {
	dir    string // in tmp
	result *layer.Result
	until  time.Time // how long it is kept for somebody to claim it
	disk   Usage
	memory int // of Service.waiting
}

// maxWaiting bounds the memory of all layers that wait to be completed. A
// single one is bounded by its limits; an image may have hundreds.
const maxWaiting = 512 << 20

// await makes room in memory for a layer that is to be parked.
func (s *Service) await(dir string, res *layer.Result) (*fetched, error) {
	f := &fetched{dir: dir, result: res, memory: res.Memory()}
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.memory > maxWaiting-s.waiting {
		return nil, fmt.Errorf("layers that wait for those below them take more than %d bytes of memory: %w", maxWaiting, errdefs.ErrResourceExhausted)
	}
	s.waiting += f.memory
	return f, nil
}

// park makes a fetched layer one to be claimed.
func (s *Service) park(f *fetched, diffID digest.Digest) {
	f.until, f.disk = time.Now().Add(keepFor), beside(f.dir)
	f.disk.Bytes += f.result.Bytes
	f.disk.Inodes += f.result.Inodes
	s.mu.Lock()
	twice := s.parked[diffID] != nil
	if !twice {
		s.parked[diffID] = f
		s.used.Bytes += f.disk.Bytes
		s.used.Inodes += f.disk.Inodes
	} else {
		s.waiting -= f.memory
	}
	s.mu.Unlock()
	if twice {
		s.discardLogged(f.dir)
	}
	wake(s.reclaim)
}

// unpark is called with mu held.
func (s *Service) unpark(diffID digest.Digest) *fetched {
	f := s.parked[diffID]
	if f != nil {
		delete(s.parked, diffID)
		s.used.Bytes -= f.disk.Bytes
		s.used.Inodes -= f.disk.Inodes
	}
	return f
}

// giveUp takes a layer out that nobody has claimed. Its directory is left to
// the caller. Called with mu held.
func (s *Service) giveUp(diffID digest.Digest) (dir string) {
	f := s.unpark(diffID)
	s.waiting -= f.memory
	return f.dir
}

// look finds what there is of a layer: it is stored and the caller gets a
// reference; or it is fetched and the caller has claimed it, is to complete it
// and calls settle; or somebody else does so for the same chain of layers, and
// the caller is to look again when the channel is closed.
func (s *Service) look(w wanted) (*storedLayer, *fetched, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.stored(w); l != nil {
		l.refs++
		return l, nil, nil
	}
	if busy := s.claims[w.chainID]; busy != nil {
		return nil, nil, busy
	}
	f := s.unpark(w.diffID)
	if f != nil {
		s.claims[w.chainID] = make(chan struct{})
	}
	return nil, f, nil
}

// stored is called with mu held.
func (s *Service) stored(w wanted) *storedLayer {
	if l := s.layers[chainKey(w.chainID)]; l != nil {
		return l
	}
	return s.layers[layerKey(w.diffID)]
}

// settle says that a claimed layer is stored, parked or gone. memory is what it
// no longer takes.
func (s *Service) settle(w wanted, memory int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting -= memory
	close(s.claims[w.chainID])
	delete(s.claims, w.chainID)
}

// dropKept gives up all that is kept for a retry after an error that says that
// there is no room for it.
func (s *Service) dropKept(err error) {
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.idle {
		l.keptUntil = time.Time{}
	}
	for _, f := range s.parked {
		f.until = time.Time{}
	}
	wake(s.reclaim)
}

// reap takes the layers out of the index that nobody needs, then off the
// disk. A crash in between leaves directories without a record, or records
// without a directory; both are repaired at Open. It returns how long the
// first of those that are kept for a retry is, 0 when none is.
func (s *Service) reap(now time.Time) (next time.Duration, err error) {
	s.change.Lock()
	defer s.change.Unlock()
	keys, dirs, next := s.unneeded(now)
	if len(keys) > 0 {
		err = s.meta.Update(meta.Change{DropLayers: keys})
	}
	for _, key := range keys {
		dirs = append(dirs, s.path(layersDir, key))
	}
	for _, dir := range dirs {
		if derr := s.discard(dir); derr != nil && err == nil {
			err = derr
		}
	}
	return next, err
}

// unneeded takes what is to be deleted out of the index.
func (s *Service) unneeded(now time.Time) (keys, dirs []string, next time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	later := func(until time.Time) bool {
		left := until.Sub(now)
		if left > 0 && (next == 0 || left < next) {
			next = left
		}
		return left > 0
	}
	var kept []*storedLayer
	for _, l := range s.idle {
		if l.refs > 0 || s.layers[l.Key] != l {
			continue
		}
		if later(l.keptUntil) {
			kept = append(kept, l)
			continue
		}
		delete(s.layers, l.Key)
		s.used.Bytes -= l.Bytes
		s.used.Inodes -= l.Inodes
		keys = append(keys, l.Key)
	}
	s.idle = kept
	for diffID, f := range s.parked {
		if !later(f.until) {
			dirs = append(dirs, s.giveUp(diffID))
		}
	}
	return keys, dirs, next
}
