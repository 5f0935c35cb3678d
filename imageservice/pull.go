package imageservice

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
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
	crierrors "k8s.io/cri-api/pkg/errors"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/imageservice/internal/manifest"
	"github.com/gantry-cri/gantry/imageservice/internal/meta"
	"github.com/gantry-cri/gantry/imageservice/internal/registry"
	"github.com/gantry-cri/gantry/imageservice/internal/verify"
)

// pullOnce joins a pull of the same reference with the same credentials that
// is under way, or makes one.
func (s *Service) pullOnce(ctx context.Context, ref string, auth *runtimeapi.AuthConfig) (*image, error) {
	named, err := s.reference(ref)
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
	switch { // the kubelet knows two reasons by the first word of the text
	case err == nil:
	case errors.Is(err, verify.ErrRefused):
		return nil, fmt.Errorf("%w: pulling image %q: %w", crierrors.ErrSignatureValidationFailed, named.String(), err)
	case errdefs.IsUnavailable(err):
		return nil, fmt.Errorf("%w: pulling image %q: %w", crierrors.ErrRegistryUnavailable, named.String(), err)
	default:
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
	if !s.verifiers.Any() { // who asks them needs the manifest
		if img, err := s.unchanged(ctx, repo, named); img != nil || err != nil {
			return img, err
		}
	}
	found, err := s.manifests(ctx, repo, object(named))
	if err != nil {
		return nil, err
	}
	if err := s.verifiers.Check(ctx, named.String(), found.top); err != nil {
		return nil, err
	}
	names := []string{digestName(named, found.top.Digest)}
	if _, ok := named.(reference.Digested); !ok {
		names = append(names, named.String())
	}
	s.progress.leadsTo(this, found.id())
	s.mu.RLock()
	have := s.images[found.id()]
	s.mu.RUnlock()
	if have != nil {
		return s.renamed(have.ID, names)
	}
	img, err := s.fetchImage(ctx, repo, found, names)
	if err != nil {
		return nil, err
	}
	klog.FromContext(ctx).Info("Pulled image", "image", named.String(), "imageID", img.ID, "digest", found.top.Digest,
		"bytes", size(found.manifest.Layers), "layers", len(found.manifest.Layers), "duration", time.Since(start))
	return img, nil
}

// fetchImage makes an image out of its blobs and gives it names. Several names
// may lead to one image at once: it comes once.
func (s *Service) fetchImage(ctx context.Context, src source, found resolved, names []string) (*image, error) {
	img, release, err := s.downloads.Do(ctx, found.id(), func(ctx context.Context) (*image, error) {
		ctx, done, err := s.begin(ctx)
		if err != nil {
			return nil, err
		}
		defer done()
		here, end := s.progress.transfer(found.id(), found.manifest.Layers)
		defer end()
		img, content, err := s.download(ctx, src, found, here)
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

// resolved is what a name has led to.
type resolved struct {
	top      ocispec.Descriptor // of the index or manifest that has the name
	digest   digest.Digest      // of the manifest
	body     []byte             // of the manifest
	manifest *manifest.Manifest
}

// id is that of the image: the digest of its config. An artifact has no config
// of its own, so many have the same; its id is the digest of the manifest.
func (r resolved) id() string {
	if r.manifest.IsArtifact() {
		return r.digest.String()
	}
	return r.manifest.Config.Digest.String()
}

// manifests goes from a tag or digest through indexes to the manifest for this
// platform. Each but the first is asked for by the digest that the one before
// it has, so that who agrees to the first has agreed to all.
func (s *Service) manifests(ctx context.Context, repo *registry.Repository, ref string) (found resolved, err error) {
	platform := platforms.Default()
	var next ocispec.Descriptor
	for depth := 0; ; depth++ {
		desc, body, err := repo.Manifest(ctx, ref, manifest.Accept, s.cfg.Limits.ManifestSize)
		if err != nil {
			return found, err
		}
		if depth == 0 {
			found.top, next = desc, desc
		}
		if err := manifest.Match(next, desc); err != nil {
			return found, err
		}
		doc, err := manifest.Parse(cmp.Or(next.MediaType, desc.MediaType), body, s.manifestLimits())
		if err != nil {
			return found, fmt.Errorf("%s: %w", desc.Digest, err)
		}
		if doc.Manifest != nil {
			found.digest, found.body, found.manifest = desc.Digest, body, doc.Manifest
			return found, nil
		}
		if depth == s.cfg.Limits.IndexDepth {
			return found, fmt.Errorf("more than %d indexes in one another: %w", depth, errdefs.ErrInvalidArgument)
		}
		if next, err = manifest.Select(doc.Index, platform); err != nil {
			return found, err
		}
		ref = next.Digest.String()
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

func keys(layers []*storedLayer) []string {
	keys := make([]string, len(layers))
	for i, l := range layers {
		keys[i] = l.Key
	}
	return keys
}
