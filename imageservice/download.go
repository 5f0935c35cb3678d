package imageservice

import (
	"context"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/gantry-cri/gantry/imageservice/internal/manifest"
	"github.com/gantry-cri/gantry/imageservice/internal/meta"
)

// source is where an image comes from: a repository or an archive.
type source interface {
	// Blob returns a small blob whole and verified.
	Blob(ctx context.Context, desc ocispec.Descriptor) ([]byte, error)
	// Open returns a reader of a blob, which the caller verifies and closes.
	// It has a byte or an error within a bounded time.
	Open(ctx context.Context, desc ocispec.Descriptor) io.ReadCloser
	// Doubt says that what a reader of Open gave is not the blob, for the
	// reason given, and returns whether Open may take it from elsewhere.
	Doubt(ctx context.Context, blob io.ReadCloser, reason error) bool
}

// again tells whether a blob is to be fetched once more after an error of what
// was in it: another host may have the right one. Wrong bytes may look
// malformed before all have come and the digest tells.
func again(ctx context.Context, src source, blob io.ReadCloser, err error) bool {
	wrong := errdefs.IsDataLoss(err) || errdefs.IsInvalidArgument(err)
	return wrong && ctx.Err() == nil && src.Doubt(ctx, blob, err)
}

// download fetches the config and all layers. The image it returns holds a
// reference to each layer; on an error none is held, and those that were
// fetched stay for a while. here is called with the number of each layer that
// is. content is the documents to be kept.
func (s *Service) download(ctx context.Context, src source, found resolved, here func(int)) (_ *image, content map[digest.Digest][]byte, err error) {
	defer func() { s.dropKept(err) }()
	content = map[digest.Digest][]byte{found.digest: found.body}
	if found.manifest.IsArtifact() {
		img, err := s.downloadArtifact(ctx, src, found, here)
		return img, content, err
	}
	raw, err := src.Blob(ctx, found.manifest.Config)
	if err != nil {
		return nil, nil, fmt.Errorf("image config: %w", err)
	}
	content[found.manifest.Config.Digest] = raw
	config, err := manifest.ParseConfig(raw, len(found.manifest.Layers), platforms.Default())
	if err != nil {
		return nil, nil, err
	}
	layers, err := s.obtainAll(ctx, src, found, config, here)
	if err != nil {
		return nil, nil, err
	}
	img, err := s.newImage(found.id(), raw, config, layers)
	if err != nil {
		s.release(layers...)
		return nil, nil, err
	}
	img.record = meta.Image{ID: img.ID, Manifest: found.digest, Layers: keys(layers)}
	return img, content, nil
}

// obtainAll obtains the layers of an image at once and completes each when
// those below it are ready. Another pull may wait for one of them, so none
// waits for those above it.
func (s *Service) obtainAll(ctx context.Context, src source, found resolved, config *manifest.Config, here func(int)) ([]*storedLayer, error) {
	blobs := found.manifest.Layers
	layers := make([]*storedLayer, len(blobs))
	ready := make([]chan struct{}, len(blobs))
	for i := range ready {
		ready[i] = make(chan struct{})
	}
	group, gctx := errgroup.WithContext(ctx)
	for i, blob := range blobs {
		group.Go(func() error {
			w := wanted{blob: blob, diffID: config.RootFS.DiffIDs[i], chainID: config.ChainIDs[i], image: found.id()}
			l, f, err := s.obtain(gctx, src, w)
			if f != nil {
				l, err = s.finish(ctx, gctx, f, w, layers[:i], ready[:i])
			}
			if err != nil {
				return err
			}
			layers[i] = l
			close(ready[i])
			here(i)
			return nil
		})
	}
	err := group.Wait()
	if err == nil {
		return layers, nil
	}
	s.release(layers...)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return nil, err
}

// newImage puts an image together; its names come with put.
func (s *Service) newImage(id string, raw []byte, config *manifest.Config, layers []*storedLayer) (*image, error) {
	root, err := s.rootOf(layers)
	if err != nil {
		return nil, err
	}
	img := &image{
		Image:  Image{ID: id, Config: config.Config, Size: uint64(len(raw))},
		config: config,
		raw:    raw,
		layers: layers,
		root:   root,
	}
	for _, l := range lower(layers) {
		img.Size += l.Bytes
	}
	return img, nil
}

func keys(layers []*storedLayer) []string {
	keys := make([]string, len(layers))
	for i, l := range layers {
		keys[i] = l.Key
	}
	return keys
}
