package imageservice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/imageservice/internal/guard"
	"github.com/gantry-cri/gantry/imageservice/internal/layer"
	"github.com/gantry-cri/gantry/imageservice/internal/meta"
)

// layerKey names the directory of a layer that stands for itself.
func layerKey(diffID digest.Digest) string { return diffID.Encoded() }

// chainKey names the directory of a layer that is right for one chain only.
func chainKey(chainID digest.Digest) string { return chainID.Encoded() + ".chain" }

// asideMark stands between a key and a unique word in the name of a layer that made way for another.
const asideMark = ".aside-"

func (s *Service) discardLogged(dir string) {
	if err := s.discard(dir); err != nil {
		s.log.Error(err, "Directory not removed; it is at the next start", "directory", dir)
	}
}

// wanted is one layer of an image being pulled.
type wanted struct {
	blob            ocispec.Descriptor
	diffID, chainID digest.Digest
	image           string // id, for whose turn it is
}

// obtain returns a stored layer with a reference for the caller, or one that
// the caller is to complete. Each layer is fetched once, whoever asks.
func (s *Service) obtain(ctx context.Context, src source, w wanted) (*storedLayer, *fetched, error) {
	for {
		l, f, busy := s.look(w)
		if l != nil || f != nil {
			return l, f, nil
		}
		if busy != nil {
			select {
			case <-busy:
				continue
			case <-ctx.Done():
				return nil, nil, context.Cause(ctx)
			}
		}
		mine := false
		l, release, err := s.fetches.Do(ctx, layerKey(w.diffID), func(ctx context.Context) (*storedLayer, error) {
			mine = true
			l, err := s.fetch(ctx, src, w)
			return l, ofSource(src, err)
		})
		if err != nil && ctx.Err() == nil && !mine && another(src, err) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		if l != nil {
			s.mu.Lock()
			l.refs++
			s.mu.Unlock()
		}
		release()
		if l != nil {
			return l, nil, nil
		}
	}
}

// dropFetched runs when all who waited for a download have left.
func (s *Service) dropFetched(l *storedLayer) { s.release(l) }

// fetch downloads, verifies and unpacks a layer, unless it has come meanwhile.
// It is stored, or else parked and to be looked for. On an error nothing is
// left.
func (s *Service) fetch(ctx context.Context, src source, w wanted) (*storedLayer, error) {
	ctx, done, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := s.slots.acquire(ctx, w.image); err != nil {
		return nil, err
	}
	defer s.slots.release()
	s.mu.Lock() // it may have come while nobody held it
	l := s.stored(w)
	if l != nil {
		l.refs++
	}
	there := l != nil || s.claims[w.chainID] != nil || s.parked[w.diffID] != nil
	s.mu.Unlock()
	if there {
		return l, nil
	}
	for {
		var blob io.ReadCloser
		l, err := s.unpack(ctx, w, func(ctx context.Context) io.ReadCloser {
			blob = src.Open(ctx, w.blob)
			return blob
		})
		if err == nil || !again(ctx, src, blob, err) {
			return l, err
		}
	}
}

// unpack reads a layer once, into a directory of its own.
func (s *Service) unpack(ctx context.Context, w wanted, open func(context.Context) io.ReadCloser) (_ *storedLayer, err error) {
	dir := s.path(tmpDir, s.unique())
	if err := os.MkdirAll(filepath.Join(dir, "fs"), 0o755); err != nil {
		return nil, fmt.Errorf("making layer directory: %w", err)
	}
	defer func() {
		if err != nil {
			s.discardLogged(dir)
		}
	}()
	root, err := openDir(filepath.Join(dir, "fs"))
	if err != nil {
		return nil, err
	}
	defer root.Close()
	blob := layer.Source{
		Open: func(ctx context.Context) (io.ReadCloser, error) {
			return s.progress.count(w.blob.Digest, open(ctx)), nil
		},
		Digest: w.blob.Digest,
		Size:   w.blob.Size,
		DiffID: w.diffID,
	}
	if s.cfg.KeepLayerBlobs {
		keep, err := os.OpenFile(filepath.Join(dir, "blob"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return nil, err
		}
		defer keep.Close()
		blob.Keep = keep
	}
	res, err := layer.Unpack(ctx, blob, int(root.Fd()), layer.Limits{Entries: s.cfg.Limits.LayerEntries, Bytes: s.cfg.Limits.LayerSize, Ratio: s.cfg.Limits.LayerRatio})
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", w.blob.Digest, err)
	}
	if res.Dependent() {
		f, err := s.await(dir, res)
		if err != nil {
			return nil, err
		}
		s.park(f, w.diffID)
		return nil, nil
	}
	return s.store(dir, meta.Layer{Key: layerKey(w.diffID), DiffID: w.diffID}, res)
}

// finish completes a claimed layer when those below it are ready, unless one of
// those fails, which is when failed ends. On an error it is parked again, or
// gone when it was completed in part.
func (s *Service) finish(ctx, failed context.Context, f *fetched, w wanted, below []*storedLayer, ready []chan struct{}) (*storedLayer, error) {
	for _, c := range ready {
		select {
		case <-c:
		case <-failed.Done():
			s.park(f, w.diffID)
			s.settle(w, 0)
			return nil, context.Cause(failed)
		}
	}
	var l *storedLayer
	err := guard.Run(ctx, func() (err error) {
		l, err = s.complete(ctx, f, w, below)
		return err
	})
	if err != nil {
		s.discardLogged(f.dir)
	}
	s.settle(w, f.memory)
	return l, err
}

// complete finishes a layer for the chain of layers below it, lowest first,
// and stores it.
func (s *Service) complete(ctx context.Context, f *fetched, w wanted, below []*storedLayer) (*storedLayer, error) {
	root, err := openDir(filepath.Join(f.dir, "fs"))
	if err != nil {
		return nil, err
	}
	defer root.Close()
	view := -1
	if len(below) > 0 {
		// The empty directory makes two of one: overlayfs wants that.
		dirs := append(s.dirs(lower(below)), s.path(emptyDir))
		scratch := filepath.Join(f.dir, "view")
		if err := os.Mkdir(scratch, 0o700); err != nil {
			return nil, err
		}
		if view, err = s.mounter.View(dirs, scratch); err != nil {
			return nil, fmt.Errorf("layer %s: viewing the layers below: %w", w.blob.Digest, err)
		}
		defer unix.Close(view)
		if err := os.Remove(scratch); err != nil {
			return nil, err
		}
	}
	if err := f.result.Complete(ctx, int(root.Fd()), view); err != nil {
		return nil, fmt.Errorf("layer %s: %w", w.blob.Digest, err)
	}
	return s.store(f.dir, meta.Layer{Key: chainKey(w.chainID), DiffID: w.diffID}, f.result)
}

// store moves a finished layer to its place. Its record is written with that
// of the first image that has it; until then a crash takes it away again.
func (s *Service) store(dir string, m meta.Layer, res *layer.Result) (*storedLayer, error) {
	extra := beside(dir)
	m.Bytes, m.Inodes = res.Bytes+extra.Bytes, res.Inodes+extra.Inodes
	m.RootListed, m.RootOpaque = res.RootListed, res.RootOpaque
	s.change.Lock()
	defer s.change.Unlock()
	if l := s.hold(m.Key); l != nil { // completed by another pull meanwhile
		s.discardLogged(dir)
		return l, nil
	}
	place := s.path(layersDir, m.Key)
	err := os.Rename(dir, place)
	if errors.Is(err, os.ErrExist) { // one without a record, which a container may be made of
		if err = os.Rename(place, place+asideMark+s.unique()); err == nil {
			err = os.Rename(dir, place)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("storing layer: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addLayer(m), nil
}

// beside is what a layer takes on the disk beside its files: the directory that
// they are in, and the blob if it is kept.
func beside(dir string) Usage {
	u := Usage{Bytes: 4096, Inodes: 1}
	if info, err := os.Lstat(filepath.Join(dir, "blob")); err == nil {
		u.Bytes, u.Inodes = u.Bytes+uint64(info.Size()+4095)&^4095, u.Inodes+1
	}
	return u
}

// dirs are the layers' directories.
func (s *Service) dirs(layers []*storedLayer) []string {
	dirs := make([]string, len(layers), len(layers)+1)
	for i, l := range layers {
		dirs[i] = s.path(layersDir, l.Key, "fs")
	}
	return dirs
}

// rootOf finds what the image says of its root directory.
func (s *Service) rootOf(layers []*storedLayer) (rootMeta, error) {
	for _, l := range lower(layers) {
		if !l.RootListed {
			continue
		}
		var st unix.Stat_t
		if err := unix.Lstat(s.path(layersDir, l.Key, "fs"), &st); err != nil {
			return rootMeta{}, fmt.Errorf("layer %s: %w", l.Key, err)
		}
		return rootMeta{mode: st.Mode & 0o7777, uid: int(st.Uid), gid: int(st.Gid)}, nil
	}
	return rootMeta{mode: 0o755}, nil
}

func openDir(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// isMissing says whether a layer's directory is not there. One that cannot be looked at now may be.
func isMissing(path string) bool {
	info, err := os.Lstat(path)
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || err == nil && !info.IsDir()
}
