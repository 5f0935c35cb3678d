package imageservice

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/imageservice/internal/manifest"
	"github.com/gantry-cri/gantry/imageservice/internal/meta"
	"github.com/gantry-cri/gantry/imageservice/internal/registry"
)

// maxIndexDepth bounds indexes in indexes.
const maxIndexDepth = 3

// pullOnce joins a pull of the same reference with the same credentials that
// is under way, or makes one.
func (s *Service) pullOnce(ctx context.Context, ref string, auth *runtimeapi.AuthConfig) (*image, error) {
	named, err := parseReference(ref)
	if err != nil {
		return nil, err
	}
	secret, err := proto.MarshalOptions{Deterministic: true}.Marshal(auth)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(secret)
	key := named.String() + " " + hex.EncodeToString(sum[:])
	img, release, err := s.pulls.Do(ctx, key, func(ctx context.Context) (*image, error) {
		ctx, done, err := s.begin(ctx)
		if err != nil {
			return nil, err
		}
		defer done()
		return s.pull(ctx, named, auth)
	})
	if err != nil {
		if errdefs.IsUnavailable(err) {
			// The kubelet knows this reason by its first word.
			return nil, fmt.Errorf("RegistryUnavailable: pulling image %q: %w", named.String(), err)
		}
		return nil, fmt.Errorf("pulling image %q: %w", named.String(), err)
	}
	release()
	return img, nil
}

func (s *Service) pull(ctx context.Context, named reference.Named, auth *runtimeapi.AuthConfig) (*image, error) {
	start := time.Now()
	this, end := s.progress.begin(ctx, named.String())
	defer end()
	repo, err := s.registry.Repository(ctx, named, auth)
	if err != nil {
		return nil, err
	}
	defer repo.Close()
	if img, err := s.unchanged(ctx, repo, named); img != nil || err != nil {
		return img, err
	}
	top, m, content, err := s.manifests(ctx, repo, object(named))
	if err != nil {
		return nil, err
	}
	names := []string{digestName(named, top.Digest)}
	if _, ok := named.(reference.Digested); !ok {
		names = append(names, named.String())
	}
	id := m.Config.Digest.String()
	s.progress.leadsTo(this, id)
	s.mu.RLock()
	have := s.images[id]
	s.mu.RUnlock()
	if have != nil {
		return s.renamed(id, names)
	}
	img, err := s.fetchImage(ctx, repo, m, content, names)
	if err != nil {
		return nil, err
	}
	klog.FromContext(ctx).Info("Pulled image", "image", named.String(), "imageID", img.ID, "digest", top.Digest,
		"bytes", size(m.Layers), "layers", len(m.Layers), "duration", time.Since(start))
	return img, nil
}

// fetchImage makes an image out of its blobs and gives it names. Several names
// may lead to one image at once: it comes once.
func (s *Service) fetchImage(ctx context.Context, src source, m *manifest.Manifest, content map[digest.Digest][]byte, names []string) (*image, error) {
	id := m.Config.Digest.String()
	img, release, err := s.downloads.Do(ctx, id, func(ctx context.Context) (*image, error) {
		ctx, done, err := s.begin(ctx)
		if err != nil {
			return nil, err
		}
		defer done()
		here, end := s.progress.transfer(id, m.Layers)
		defer end()
		img, err := s.download(ctx, src, m, content, here)
		if err != nil {
			return nil, err
		}
		return img, s.commit(img, content, names)
	})
	wake(s.pulled)
	if err != nil {
		return nil, err
	}
	release()
	return s.renamed(img.ID, names)
}

// renamed is rename of an image that was here a moment ago.
func (s *Service) renamed(id string, names []string) (*image, error) {
	img, err := s.rename(id, names)
	if img == nil && err == nil {
		err = fmt.Errorf("image was removed while it was pulled: %w", errdefs.ErrAborted)
	}
	return img, err
}

func size(blobs []ocispec.Descriptor) (total int64) {
	for _, b := range blobs {
		total += b.Size
	}
	return total
}

func digestName(named reference.Named, d digest.Digest) string {
	return reference.TrimNamed(named).String() + "@" + d.String()
}

// unchanged asks the registry what the reference is now. When that is here
// already, only names are missing. nil when it must be fetched.
func (s *Service) unchanged(ctx context.Context, repo *registry.Repository, named reference.Named) (*image, error) {
	s.mu.RLock()
	known := s.names[named.String()] != ""
	s.mu.RUnlock()
	if !known {
		return nil, nil
	}
	d, err := repo.Digest(ctx, object(named), manifest.Accept)
	if err != nil {
		if errdefs.IsUnavailable(err) || ctx.Err() != nil {
			return nil, err
		}
		return nil, nil // perhaps it has no HEAD; GET will say
	}
	if want, ok := named.(reference.Digested); ok {
		d = want.Digest()
	}
	s.mu.RLock()
	id := s.names[digestName(named, d)]
	s.mu.RUnlock()
	if id == "" {
		return nil, nil
	}
	return s.rename(id, []string{named.String()})
}

// rename gives more names to an image that is here; nil when it is no more.
func (s *Service) rename(id string, names []string) (*image, error) {
	s.change.Lock()
	defer s.change.Unlock()
	s.mu.RLock()
	img := s.images[id]
	put := make(map[string]string)
	for _, n := range names {
		if s.names[n] != id {
			put[n] = id
		}
	}
	s.mu.RUnlock()
	if img == nil || len(put) == 0 {
		return img, nil
	}
	if err := s.meta.Update(meta.Change{PutNames: put}); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.name(id, names)
	s.put(img)
	return s.images[id], nil
}

// manifests goes from a tag or digest through indexes to the manifest for
// this platform. content is that manifest, as it is to be kept.
func (s *Service) manifests(ctx context.Context, repo *registry.Repository, ref string) (top ocispec.Descriptor, m *manifest.Manifest, content map[digest.Digest][]byte, err error) {
	platform := platforms.Default()
	mediaType := ""
	for depth := 0; ; depth++ {
		desc, body, err := repo.Manifest(ctx, ref, manifest.Accept, manifest.MaxSize)
		if err != nil {
			return top, nil, nil, err
		}
		if depth == 0 {
			top = desc
			if err := manifest.CheckDigest(desc.Digest); err != nil {
				return top, nil, nil, err
			}
		}
		if mediaType == "" {
			mediaType = desc.MediaType
		}
		doc, err := manifest.Parse(mediaType, body)
		if err != nil {
			return top, nil, nil, fmt.Errorf("%s: %w", desc.Digest, err)
		}
		if doc.Manifest != nil {
			return top, doc.Manifest, map[digest.Digest][]byte{desc.Digest: body}, nil
		}
		if depth == maxIndexDepth {
			return top, nil, nil, fmt.Errorf("more than %d indexes in one another: %w", maxIndexDepth, errdefs.ErrInvalidArgument)
		}
		next, err := manifest.Select(doc.Index, platform)
		if err != nil {
			return top, nil, nil, err
		}
		ref, mediaType = next.Digest.String(), next.MediaType
	}
}

// source is where an image comes from: a repository or an archive.
type source interface {
	// Blob returns a small blob whole and verified.
	Blob(ctx context.Context, desc ocispec.Descriptor) ([]byte, error)
	// Open returns a reader of a blob, which the caller verifies and closes.
	// It has a byte or an error within a bounded time.
	Open(ctx context.Context, desc ocispec.Descriptor) io.ReadCloser
}

// download fetches the config and all layers. The image it returns holds a
// reference to each layer; on an error none is held. here is called with the
// number of each layer that is.
func (s *Service) download(ctx context.Context, src source, m *manifest.Manifest, content map[digest.Digest][]byte, here func(int)) (_ *image, err error) {
	raw, err := src.Blob(ctx, m.Config)
	if err != nil {
		return nil, fmt.Errorf("image config: %w", err)
	}
	config, err := manifest.ParseConfig(raw, len(m.Layers), platforms.Default())
	if err != nil {
		return nil, err
	}
	layers := make([]*storedLayer, len(m.Layers))
	pending := make([]*fetched, len(m.Layers))
	defer func() {
		if err != nil {
			s.release(layers...)
		}
		for _, f := range pending {
			if f != nil {
				s.discardLogged(f.dir) // not completed
			}
		}
	}()
	want := make([]wanted, len(m.Layers))
	group, gctx := errgroup.WithContext(ctx)
	for i := range m.Layers {
		want[i] = wanted{m.Layers[i], config.RootFS.DiffIDs[i], config.ChainIDs[i]}
		group.Go(func() (err error) {
			layers[i], pending[i], err = s.obtain(gctx, src, want[i])
			if err == nil {
				here(i)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	for i, f := range pending {
		if f == nil {
			continue
		}
		if layers[i], err = s.complete(ctx, f, want[i], layers[:i]); err != nil {
			return nil, err
		}
		pending[i] = nil
	}
	img, err := s.newImage(m.Config.Digest.String(), raw, config, layers)
	if err != nil {
		return nil, err
	}
	for d := range content {
		img.record = meta.Image{ID: img.ID, Manifest: d, Layers: keys(layers)}
	}
	content[m.Config.Digest] = raw
	return img, nil
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

// commit makes an image durable, then visible. It takes over the references
// to the layers, also on an error.
func (s *Service) commit(img *image, content map[digest.Digest][]byte, names []string) error {
	err := s.sync() // without a lock: it may take seconds
	if err == nil {
		err = s.record(img, content, names)
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
	if err := s.meta.Update(change); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.images[img.ID]; old != nil { // pulled by another name meanwhile
		s.releaseLocked(img.layers)
		img = old
	}
	s.name(img.ID, names)
	s.put(img)
	return nil
}

func keys(layers []*storedLayer) []string {
	keys := make([]string, len(layers))
	for i, l := range layers {
		keys[i] = l.Key
	}
	return keys
}
