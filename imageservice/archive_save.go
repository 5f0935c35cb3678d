package imageservice

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantry-cri/gantry/imageservice/internal/archive"
	"github.com/gantry-cri/gantry/imageservice/internal/manifest"
	"github.com/gantry-cri/gantry/imageservice/internal/meta"
)

// Save writes images as one archive that any tool takes. An image whose blobs
// were kept (Config.KeepLayerBlobs) is the same in it, byte for byte. Of others
// the layers are made anew from their files, with gzip if compress; such an
// image has other digests, so another id, which changed is called with. By a
// tag an image is saved with this tag, by its id or digest with all it has.
func (s *Service) Save(ctx context.Context, w io.Writer, refs []string, compress bool, changed func(id, newID string)) error {
	ctx, done, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	images, err := s.holdImages(refs)
	if err != nil {
		return err
	}
	defer func() {
		for _, img := range images {
			s.release(img.layers...)
		}
	}()
	out, err := archive.NewWriter(w)
	if err != nil {
		return err
	}
	save := saver{Service: s, ctx: ctx, out: out, compress: compress, made: make(map[string]madeLayer)}
	for _, img := range images {
		newID, err := save.image(img)
		if err != nil {
			return fmt.Errorf("saving image %s: %w", img.ID, err)
		}
		if newID != img.ID {
			changed(img.ID, newID)
		}
	}
	return out.Close()
}

// held is an image whose layers stay until they are released.
type held struct {
	*image
	tags []reference.NamedTagged
}

// holdImages finds images and holds their layers; each image once.
func (s *Service) holdImages(refs []string) ([]*held, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var images []*held
	for _, ref := range refs {
		img, err := s.find(ref)
		if err != nil {
			for _, h := range images {
				s.releaseLocked(h.layers)
			}
			return nil, err
		}
		i := slices.IndexFunc(images, func(h *held) bool { return h.ID == img.ID })
		if i < 0 {
			i = len(images)
			images = append(images, &held{image: img})
			for _, l := range img.layers {
				l.refs++
			}
		}
		images[i].addTags(s, ref)
	}
	return images, nil
}

// addTags adds the tags that an image is saved with when ref asks for it.
func (h *held) addTags(s *Service, ref string) {
	want := h.RepoTags
	if named, err := s.reference(ref); err == nil && slices.Contains(h.RepoTags, named.String()) {
		want = []string{named.String()}
	}
	for _, name := range want {
		named, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			continue // it is one of ours, so it parses
		}
		tag, ok := named.(reference.NamedTagged)
		if ok && !slices.ContainsFunc(h.tags, func(t reference.NamedTagged) bool { return t.String() == name }) {
			h.tags = append(h.tags, tag)
		}
	}
}

// madeLayer is a layer as it was made anew.
type madeLayer struct {
	diffID digest.Digest
	blob   ocispec.Descriptor
}

// saver writes the images of one archive.
type saver struct {
	*Service
	ctx      context.Context // of the one call that it lives for
	out      *archive.Writer
	compress bool
	made     map[string]madeLayer // by layer key
}

// image writes one image and returns the id that it has in the archive.
func (v *saver) image(img *held) (id string, err error) {
	body, err := v.meta.Content(img.record.Manifest)
	if err != nil {
		return "", err
	}
	doc, err := manifest.Parse("", body, v.manifestLimits())
	if err != nil {
		return "", fmt.Errorf("its manifest: %w", err)
	}
	blobs, err := v.blobs(img, doc.Manifest)
	if err != nil {
		return "", err
	}
	if blobs == nil {
		return v.anew(img)
	}
	for i, l := range doc.Manifest.Layers {
		if err := v.file(l, blobs[i]); err != nil {
			return "", err
		}
	}
	config, err := v.config(img, doc.Manifest.Config)
	if err != nil {
		return "", err
	}
	if err := v.out.Blob(doc.Manifest.Config.Digest, doc.Manifest.Config.Size, bytes.NewReader(config)); err != nil {
		return "", err
	}
	return img.ID, v.out.Image(img.tags, mediaTypeOf(body), body, doc.Manifest)
}

// config is what an image is configured with.
func (v *saver) config(img *held, desc ocispec.Descriptor) ([]byte, error) {
	switch {
	case !img.artifact:
		return img.raw, nil
	case desc.Digest == ocispec.DescriptorEmptyJSON.Digest:
		return ocispec.DescriptorEmptyJSON.Data, nil
	}
	return os.ReadFile(v.path(layersDir, img.layers[0].Key, artifactConfig))
}

// blobs are the files that hold an image's blobs, nil when one was not kept.
// Equal layers are stored once, so what lies there may be the blob of another
// image's manifest: only the digest tells.
func (v *saver) blobs(img *held, m *manifest.Manifest) ([]string, error) {
	paths := make([]string, len(m.Layers))
	for i, l := range m.Layers {
		if img.artifact { // whose files are the blobs
			paths[i] = v.path(layersDir, img.layers[0].Key, "fs", m.Files[i])
			continue
		}
		paths[i] = v.path(layersDir, img.layers[i].Key, "blob")
		f, err := openBlob(paths[i])
		if os.IsNotExist(err) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		hash := sha256.New()
		n, err := io.Copy(hash, reader{v.ctx, f})
		_ = f.Close()
		if err != nil {
			return nil, err
		}
		if n != l.Size || digest.NewDigest(digest.SHA256, hash) != l.Digest {
			return nil, nil
		}
	}
	return paths, nil
}

func openBlob(path string) (*os.File, error) {
	root, err := os.OpenRoot(filepath.Dir(path)) // a file of an image, which may be a link
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return root.Open(filepath.Base(path))
}

// file writes a blob from a file.
func (v *saver) file(desc ocispec.Descriptor, path string) error {
	f, err := openBlob(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return v.out.Blob(desc.Digest, desc.Size, reader{v.ctx, f})
}

// anew writes an image with layers made of their files.
func (v *saver) anew(img *held) (id string, err error) {
	var diffIDs []digest.Digest
	var layers []ocispec.Descriptor
	for _, l := range img.layers {
		made, seen := v.made[l.Key]
		if !seen {
			if made, err = v.layer(l.Layer); err != nil {
				return "", fmt.Errorf("layer %s: %w", l.DiffID, err)
			}
			v.made[l.Key] = made
		}
		diffIDs, layers = append(diffIDs, made.diffID), append(layers, made.blob)
	}
	config := img.raw
	if !slices.Equal(diffIDs, img.config.RootFS.DiffIDs) {
		if config, err = withDiffIDs(img.raw, diffIDs); err != nil {
			return "", err
		}
	}
	configDesc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))}
	if err := v.out.Blob(configDesc.Digest, configDesc.Size, bytes.NewReader(config)); err != nil {
		return "", err
	}
	body, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: configDesc, Layers: layers,
	})
	if err != nil {
		return "", err
	}
	m := &manifest.Manifest{Config: configDesc, Layers: layers}
	return configDesc.Digest.String(), v.out.Image(img.tags, ocispec.MediaTypeImageManifest, body, m)
}

// layer makes the tar of a layer, first into a file without a name: the archive
// has the digest before the content.
func (v *saver) layer(l meta.Layer) (made madeLayer, err error) {
	root, err := openDir(v.path(layersDir, l.Key, "fs"))
	if err != nil {
		return made, err
	}
	defer root.Close()
	file, err := v.unnamed()
	if err != nil {
		return made, err
	}
	defer file.Close()
	blobHash, tarHash := sha256.New(), sha256.New()
	blob := io.MultiWriter(blobHash, file)
	made.blob.MediaType = ocispec.MediaTypeImageLayer
	sink := blob
	var zw *gzip.Writer
	if v.compress {
		made.blob.MediaType = ocispec.MediaTypeImageLayerGzip
		zw = gzip.NewWriter(blob)
		sink = zw
	}
	if err := archive.Layer(v.ctx, io.MultiWriter(tarHash, sink), root, l.RootListed); err != nil {
		return made, err
	}
	if zw != nil {
		if err := zw.Close(); err != nil {
			return made, err
		}
	}
	if made.blob.Size, err = file.Seek(0, io.SeekCurrent); err != nil {
		return made, err
	}
	made.diffID = digest.NewDigest(digest.SHA256, tarHash)
	made.blob.Digest = digest.NewDigest(digest.SHA256, blobHash)
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return made, err
	}
	return made, v.out.Blob(made.blob.Digest, made.blob.Size, reader{v.ctx, file})
}

// withDiffIDs replaces only these in a config.
func withDiffIDs(raw []byte, diffIDs []digest.Digest) ([]byte, error) {
	var config map[string]json.RawMessage
	if err := json.Unmarshal(raw, &config); err != nil {
		return nil, fmt.Errorf("its config: %w: %w", err, errdefs.ErrDataLoss)
	}
	rootfs, err := json.Marshal(ocispec.RootFS{Type: "layers", DiffIDs: diffIDs})
	if err != nil {
		return nil, err
	}
	maps.DeleteFunc(config, func(key string, _ json.RawMessage) bool { return strings.EqualFold(key, "rootfs") })
	config["rootfs"] = rootfs
	return json.Marshal(config)
}

// mediaTypeOf is what a manifest says of itself.
func mediaTypeOf(body []byte) string {
	var m struct{ MediaType string }
	_ = json.Unmarshal(body, &m) // it was parsed before
	return cmp.Or(m.MediaType, ocispec.MediaTypeImageManifest)
}

// reader ends with the context.
type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if err := context.Cause(r.ctx); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
