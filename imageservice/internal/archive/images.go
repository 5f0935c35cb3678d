package archive

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantry-cri/gantry/imageservice/internal/manifest"
)

const (
	layerTar       = "layer.tar"
	blobsDir       = "blobs/sha256/"
	dockerManifest = "manifest.json"
	// annotationName has the full name of an image; the OCI's own ref.name is
	// often a tag only.
	annotationName = "io.containerd.image.name"
)

// isDocument tells the files that are JSON whatever an image needs.
func isDocument(name string) bool {
	switch name {
	case dockerManifest, ocispec.ImageIndexFile, ocispec.ImageLayoutFile, "repositories":
		return true
	}
	return false
}

// dockerImage is an entry of manifest.json.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func (a *Archive) findImages() (err error) {
	switch {
	case a.entries[ocispec.ImageLayoutFile] != nil && a.entries[ocispec.ImageIndexFile] != nil:
		err = a.layoutImages()
	case a.entries[dockerManifest] != nil:
		err = a.dockerImages()
	default:
		return fmt.Errorf("archive has neither %s and %s (OCI) nor %s (docker save): %w",
			ocispec.ImageLayoutFile, ocispec.ImageIndexFile, dockerManifest, errdefs.ErrInvalidArgument)
	}
	if err == nil && len(a.Images) == 0 {
		err = fmt.Errorf("archive has no image: %w", errdefs.ErrInvalidArgument)
	}
	return err
}

// read decodes one of the archive's documents.
func (a *Archive) read(name string, into any) error {
	body, err := a.document(name, a.entries[name])
	if err != nil {
		return err
	}
	if err := manifest.Decode(body, into); err != nil {
		return fmt.Errorf("reading %s of the archive: %w", name, err)
	}
	return nil
}

func (a *Archive) layoutImages() error {
	var layout ocispec.ImageLayout
	if err := a.read(ocispec.ImageLayoutFile, &layout); err != nil {
		return err
	}
	if layout.Version != ocispec.ImageLayoutVersion {
		return fmt.Errorf("OCI image layout has version %.64q, not %q: %w", layout.Version, ocispec.ImageLayoutVersion, errdefs.ErrInvalidArgument)
	}
	body, err := a.document(ocispec.ImageIndexFile, a.entries[ocispec.ImageIndexFile])
	if err != nil {
		return err
	}
	doc, err := manifest.Parse("", body, a.limits.Manifest)
	if err != nil {
		return fmt.Errorf("%s: %w", ocispec.ImageIndexFile, err)
	}
	if doc.Index == nil {
		return fmt.Errorf("%s is no index: %w", ocispec.ImageIndexFile, errdefs.ErrInvalidArgument)
	}
	tops, err := choose(doc.Index)
	if err != nil {
		return fmt.Errorf("%s: %w", ocispec.ImageIndexFile, err)
	}
	at := make(map[digest.Digest]int) // in Images
	for _, desc := range tops {
		i, seen := at[desc.Digest]
		if !seen {
			img, err := a.resolve(desc)
			if err != nil {
				return err
			}
			i = len(a.Images)
			at[desc.Digest] = i
			a.Images = append(a.Images, img)
		}
		if name := nameOf(desc); name != "" {
			a.Images[i].Names = append(a.Images[i].Names, name)
		}
	}
	return nil
}

// choose takes the entries that are images for this node. Several of one name
// are of one image, for different platforms; one without a name is an image by
// itself.
func choose(entries []ocispec.Descriptor) (chosen []ocispec.Descriptor, err error) {
	var names []string
	byName := make(map[string][]ocispec.Descriptor)
	for _, e := range entries {
		if e.Annotations["vnd.docker.reference.type"] != "" {
			continue // an attestation
		}
		name := nameOf(e)
		if name == "" {
			name = e.Digest.String()
		}
		if byName[name] == nil {
			names = append(names, name)
		}
		byName[name] = append(byName[name], e)
	}
	var unfit error
	for _, name := range names {
		best, err := manifest.Select(byName[name], platforms.Default())
		if err != nil {
			unfit = fmt.Errorf("%.256s: %w", name, err)
			continue
		}
		chosen = append(chosen, best)
	}
	if len(chosen) == 0 {
		return nil, unfit
	}
	return chosen, nil
}

// nameOf is the name that an entry of index.json gives, "" for none.
func nameOf(desc ocispec.Descriptor) string {
	if name := desc.Annotations[annotationName]; name != "" {
		return name
	}
	if name := desc.Annotations[ocispec.AnnotationRefName]; strings.ContainsAny(name, "/:@") {
		return name
	}
	return ""
}

// resolve goes through indexes to the manifest for this platform.
func (a *Archive) resolve(desc ocispec.Descriptor) (Image, error) {
	img := Image{Top: desc}
	for depth := 0; ; depth++ {
		body, err := a.Blob(context.Background(), desc)
		if err != nil {
			return img, err
		}
		doc, err := manifest.Parse(desc.MediaType, body, a.limits.Manifest)
		if err != nil {
			return img, fmt.Errorf("%s: %w", desc.Digest, err)
		}
		if doc.Manifest != nil {
			img.Digest, img.Body, img.Manifest = desc.Digest, body, doc.Manifest
			return img, a.complete(doc.Manifest)
		}
		if depth == a.limits.IndexDepth {
			return img, fmt.Errorf("more than %d indexes in one another: %w", a.limits.IndexDepth, errdefs.ErrInvalidArgument)
		}
		if desc, err = manifest.Select(doc.Index, platforms.Default()); err != nil {
			return img, fmt.Errorf("%s: %w", img.Top.Digest, err)
		}
	}
}

// complete says what of an image is missing.
func (a *Archive) complete(m *manifest.Manifest) error {
	for _, desc := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
		if _, err := a.blob(desc); err != nil {
			return err
		}
	}
	return nil
}

func (a *Archive) dockerImages() error {
	var list []dockerImage
	if err := a.read(dockerManifest, &list); err != nil {
		return err
	}
	for i, d := range list {
		img, err := a.dockerImage(d)
		if err != nil {
			return fmt.Errorf("image %d of %s: %w", i, dockerManifest, err)
		}
		a.Images = append(a.Images, img)
	}
	return nil
}

// dockerImage makes the manifest that the archive does not have.
func (a *Archive) dockerImage(d dockerImage) (Image, error) {
	config, err := a.named(d.Config)
	if err != nil {
		return Image{}, fmt.Errorf("config: %w", err)
	}
	// Docker names it after its digest, others need not.
	hex := strings.TrimPrefix(strings.TrimSuffix(path.Base(d.Config), ".json"), "sha256:")
	if digest.NewDigestFromEncoded(digest.SHA256, hex).Validate() == nil && hex != config.digest.Encoded() {
		return Image{}, fmt.Errorf("config %.256q has digest %s: %w", d.Config, config.digest, errdefs.ErrDataLoss)
	}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: config.digest, Size: config.size},
		Layers:    []ocispec.Descriptor{},
	}
	for i, name := range d.Layers {
		e, err := a.named(name)
		if err != nil {
			return Image{}, fmt.Errorf("layer %d: %w", i, err)
		}
		mediaType := ocispec.MediaTypeImageLayer
		switch {
		case isGzip(e.magic[:]):
			mediaType = ocispec.MediaTypeImageLayerGzip
		case isZstd(e.magic[:]):
			mediaType = ocispec.MediaTypeImageLayerZstd
		}
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: mediaType, Digest: e.digest, Size: e.size})
	}
	body, err := json.Marshal(m)
	if err != nil {
		return Image{}, err
	}
	doc, err := manifest.Parse(m.MediaType, body, a.limits.Manifest)
	if err != nil {
		return Image{}, err
	}
	return Image{Names: d.RepoTags, Digest: digest.FromBytes(body), Body: body, Manifest: doc.Manifest}, nil
}

// named finds a file by its name, through one symbolic link.
func (a *Archive) named(name string) (*entry, error) {
	if target := a.links[name]; target != "" {
		name = target
	}
	e := a.entries[name]
	if e == nil {
		return nil, fmt.Errorf("%.256q is not in the archive: %w", name, errdefs.ErrInvalidArgument)
	}
	return e, nil
}
