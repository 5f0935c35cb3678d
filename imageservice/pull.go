package imageservice

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
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
	repo, err := s.registry.Repository(named, auth)
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
	for {
		mine := false
		img, release, err := s.downloads.Do(ctx, found.id(), func(ctx context.Context) (*image, error) {
			mine = true
			img, err := s.fetchOnce(ctx, src, found, names)
			return img, ofSource(src, err)
		})
		wake(s.pulled)
		if err == nil {
			release()
			return s.renamed(img.ID, names)
		}
		if ctx.Err() != nil || mine || !another(src, err) {
			return nil, err
		}
	}
}

func (s *Service) fetchOnce(ctx context.Context, src source, found resolved, names []string) (*image, error) {
	ctx, done, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	s.mu.RLock() // it may have come since the caller has looked
	have := s.images[found.id()]
	s.mu.RUnlock()
	if have != nil {
		return have, nil
	}
	root, err := os.Open(s.cfg.Root)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	here, end := s.progress.transfer(found.id(), found.manifest.Layers)
	defer end()
	img, content, err := s.download(ctx, src, found, here)
	if err != nil {
		return nil, err
	}
	return img, s.commit(img, content, names, root)
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
