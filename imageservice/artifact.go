package imageservice

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/gantry-cri/gantry/imageservice/internal/layer"
	"github.com/gantry-cri/gantry/imageservice/internal/manifest"
	"github.com/gantry-cri/gantry/imageservice/internal/meta"
)

// artifactKey names the directory of an artifact's files.
func artifactKey(d digest.Digest) string { return d.Encoded() + ".artifact" }

// artifactConfig is the file beside them that has the artifact's config.
const artifactConfig = "config"

// downloadArtifact fetches the files of an artifact. It is an image of one
// layer that has them under their names, which can be mounted but not run.
func (s *Service) downloadArtifact(ctx context.Context, src source, found resolved, here func(int)) (*image, error) {
	l := s.hold(artifactKey(found.digest))
	if l == nil {
		var err error
		if l, err = s.fetchFiles(ctx, src, found, here); err != nil {
			return nil, err
		}
	}
	return s.newArtifact(found, l)
}

func (s *Service) newArtifact(found resolved, l *storedLayer) (*image, error) {
	img, err := s.newImage(found.id(), found.body, &manifest.Config{}, []*storedLayer{l})
	if err != nil {
		s.release(l)
		return nil, err
	}
	img.artifact = true
	img.record = meta.Image{ID: img.ID, Manifest: found.digest, Layers: keys(img.layers), Artifact: true}
	return img, nil
}

// fetchFiles writes the files of an artifact. On an error nothing is left.
func (s *Service) fetchFiles(ctx context.Context, src source, found resolved, here func(int)) (_ *storedLayer, err error) {
	dir := s.path(tmpDir, s.unique())
	if err := os.MkdirAll(filepath.Join(dir, "fs"), 0o755); err != nil {
		return nil, fmt.Errorf("making artifact directory: %w", err)
	}
	defer func() {
		if err != nil {
			s.discardLogged(dir)
		}
	}()
	root, err := os.OpenRoot(filepath.Join(dir, "fs"))
	if err != nil {
		return nil, err
	}
	defer root.Close()
	m := found.manifest
	res := &layer.Result{Bytes: 4096, Inodes: 1, RootListed: true, RootOpaque: true}
	if err := s.fetchConfig(ctx, src, m.Config, dir, res); err != nil {
		return nil, err
	}
	dirs := map[string]bool{".": true}
	group, gctx := errgroup.WithContext(ctx)
	for i, name := range m.Files {
		for d := path.Dir(name); !dirs[d]; d = path.Dir(d) {
			dirs[d] = true
			res.Bytes, res.Inodes = res.Bytes+4096, res.Inodes+1
		}
		res.Bytes, res.Inodes = res.Bytes+uint64(m.Layers[i].Size+4095)&^4095, res.Inodes+1
		group.Go(func() error {
			err := s.fetchFile(gctx, src, found.id(), m.Layers[i], root, name)
			if err != nil {
				return fmt.Errorf("file %q of the artifact: %w", name, err)
			}
			here(i)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	return s.store(dir, meta.Layer{Key: artifactKey(found.digest), DiffID: found.digest}, res)
}

// fetchConfig keeps the config of an artifact beside its files, for Save. The
// empty one is known.
func (s *Service) fetchConfig(ctx context.Context, src source, desc ocispec.Descriptor, dir string, res *layer.Result) error {
	if desc.Digest == ocispec.DescriptorEmptyJSON.Digest {
		return nil
	}
	raw, err := src.Blob(ctx, desc)
	if err != nil {
		return fmt.Errorf("config of the artifact: %w", err)
	}
	res.Bytes, res.Inodes = res.Bytes+uint64(len(raw)+4095)&^4095, res.Inodes+1
	return os.WriteFile(filepath.Join(dir, artifactConfig), raw, 0o600)
}

// fetchFile writes one blob to a file that nobody may change.
func (s *Service) fetchFile(ctx context.Context, src source, pull string, blob ocispec.Descriptor, root *os.Root, name string) (err error) {
	if blob.Size > s.cfg.Limits.LayerSize {
		return fmt.Errorf("%d bytes, more than %d: %w", blob.Size, s.cfg.Limits.LayerSize, errdefs.ErrInvalidArgument)
	}
	if err := s.slots.acquire(ctx, pull); err != nil {
		return err
	}
	defer s.slots.release()
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()
	for {
		body := src.Open(ctx, blob)
		err := s.copyBlob(f, body, blob)
		if err == nil || !again(ctx, src, body, err) {
			return err
		}
		if err := f.Truncate(0); err != nil {
			return err
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
}

// copyBlob writes a blob as it comes, and says whether it was the right one.
func (s *Service) copyBlob(f *os.File, body io.ReadCloser, blob ocispec.Descriptor) error {
	body = s.progress.count(blob.Digest, body)
	defer body.Close()
	hash := sha256.New()
	n, err := io.CopyBuffer(io.MultiWriter(hash, f), io.LimitReader(body, blob.Size+1), make([]byte, 256<<10))
	if err != nil {
		return err
	}
	if got := digest.NewDigest(digest.SHA256, hash); n != blob.Size || got != blob.Digest {
		return fmt.Errorf("registry answers %d bytes with digest %s for blob %s of %d bytes: %w", n, got, blob.Digest, blob.Size, errdefs.ErrDataLoss)
	}
	return nil
}
