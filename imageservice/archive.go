package imageservice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/imageservice/internal/archive"
)

// Load takes all images out of an archive, which is read to its end and may be
// anything that package archive knows. loaded is called for each image that is
// there then, with its id and the tags that the archive gives it. An archive
// that is wrong in its structure, or not agreed to, leaves nothing; of one with
// a layer that is wrong the images before it stay.
func (s *Service) Load(ctx context.Context, r io.Reader, loaded func(id string, tags []string)) error {
	ctx, done, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	a, err := s.readArchive(ctx, r)
	if err != nil {
		return err
	}
	defer a.Close()
	images := make([]archived, len(a.Images))
	for i := range a.Images {
		if images[i], err = s.checkArchived(ctx, &a.Images[i]); err != nil {
			return err
		}
	}
	for _, from := range images {
		img, err := s.loadImage(ctx, a, from)
		if err != nil {
			return fmt.Errorf("loading image %s %.512q: %w", from.id(), from.tags, err)
		}
		loaded(img.ID, from.tags)
	}
	return nil
}

// archived is an image of an archive with its names: the tags, and those with
// the digest.
type archived struct {
	resolved
	tags, names []string
}

// checkArchived completes the names that an archive gives an image, and asks
// whoever must agree to it. A short name is Docker's, whatever Config.ShortNames
// is: that is how Docker writes names. A digest in a name must be the one that
// the archive has under it.
func (s *Service) checkArchived(ctx context.Context, img *archive.Image) (archived, error) {
	out := archived{resolved: resolved{digest: img.Digest, body: img.Body, manifest: img.Manifest, top: img.Top}}
	for _, text := range img.Names {
		named, err := parseReference(text)
		if err != nil {
			return out, fmt.Errorf("name in the archive: %w", err)
		}
		if d, ok := named.(reference.Digested); ok {
			if d.Digest() != img.Top.Digest {
				return out, fmt.Errorf("image %q of the archive has digest %q: %w", abbreviate(text), img.Top.Digest, errdefs.ErrDataLoss)
			}
		} else {
			out.tags = append(out.tags, named.String())
		}
		if img.Top.Digest != "" {
			out.names = append(out.names, digestName(named, img.Top.Digest))
		}
	}
	out.names = append(out.names, out.tags...)
	slices.Sort(out.names)
	out.names = slices.Compact(out.names)
	if out.top.Digest == "" {
		out.top = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: img.Digest, Size: int64(len(img.Body))}
	}
	ask := out.names
	if len(ask) == 0 {
		ask = []string{img.Digest.String()}
	}
	for _, name := range ask {
		if err := s.verifiers.Check(ctx, name, out.top); err != nil {
			return out, err
		}
	}
	return out, nil
}

// readArchive spools an archive into a file without a name. It may have half of
// what is free on the disk, since the layers that are in it come to lie there
// too.
func (s *Service) readArchive(ctx context.Context, r io.Reader) (*archive.Archive, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(s.cfg.Root, &fs); err != nil {
		return nil, fmt.Errorf("free space of %s: %w", s.cfg.Root, err)
	}
	file, err := s.unnamed()
	if err != nil {
		return nil, err
	}
	a, err := archive.Read(ctx, r, file, archive.Limits{
		Bytes: int64(fs.Bavail/2) * fs.Bsize, IndexDepth: s.cfg.Limits.IndexDepth, Manifest: s.manifestLimits(),
	})
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return a, nil
}

// unnamed makes a file that is gone when it is closed, whatever happens.
func (s *Service) unnamed() (*os.File, error) {
	path := s.path(tmpDir, s.unique())
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil {
		_ = file.Close()
		return nil, err
	}
	return file, nil
}

// loadImage is the end of a pull, with an archive for the registry.
func (s *Service) loadImage(ctx context.Context, a *archive.Archive, from archived) (*image, error) {
	start := time.Now()
	s.mu.RLock()
	have := s.images[from.id()]
	s.mu.RUnlock()
	if have != nil {
		return s.renamed(have.ID, from.names)
	}
	img, err := s.fetchImage(ctx, a, from.resolved, from.names)
	if err != nil {
		return nil, err
	}
	klog.FromContext(ctx).Info("Loaded image", "names", from.names, "imageID", img.ID, "digest", from.digest,
		"bytes", size(from.manifest.Layers), "layers", len(from.manifest.Layers), "duration", time.Since(start))
	return img, nil
}

// ofArchive is an error of what was to come from an archive.
type ofArchive struct{ error }

func (e ofArchive) Unwrap() error { return e.error }

// ofSource marks an error by where the work took from.
func ofSource(src source, err error) error {
	if _, ok := src.(*archive.Archive); ok && err != nil {
		return ofArchive{err}
	}
	return err
}

// another says whether work that failed for somebody else, whom this call has
// joined, is to be done from src: no registry's failure is that of a load, and
// no load's that of a pull.
func another(src source, err error) bool {
	_, load := src.(*archive.Archive)
	var of ofArchive
	return load || errors.As(err, &of)
}
