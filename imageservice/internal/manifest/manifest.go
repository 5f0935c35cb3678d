package manifest

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Media types of Docker's manifests, schema 2.
const (
	DockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	DockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerSchema1  = "application/vnd.docker.distribution.manifest.v1"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar"
	ociLayer       = "application/vnd.oci.image.layer.v1.tar"
)

// Accept are the media types to ask a registry for.
var Accept = []string{ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, DockerIndex, DockerManifest}

// Limits bound one document. 0 is no room, not no limit.
type Limits struct {
	Size   int64 // bytes of a document, and of those that it leads to
	Layers int
}

const (
	// maxManifests bounds the entries of an index.
	maxManifests = 1024
	// maxBlob bounds what a layer may say of its size.
	maxBlob = 1 << 42
)

// Document is an index or a manifest, never both.
type Document struct {
	Index    []ocispec.Descriptor // entries of an index; nil for a manifest
	Manifest *Manifest
}

// Manifest names the parts of one image or artifact.
type Manifest struct {
	Config ocispec.Descriptor
	Layers []ocispec.Descriptor // lowest first
	// ArtifactType is what an artifact is; "" for an image.
	ArtifactType string
	// Files are the relative paths of an artifact's layers; none for an image.
	Files []string
}

// IsArtifact says that it is no image: it has files but no layers and no config.
func (m *Manifest) IsArtifact() bool { return m.ArtifactType != "" }

// document has the fields of both kinds, so that a mixture is seen.
type document struct {
	SchemaVersion int                   `json:"schemaVersion"`
	MediaType     string                `json:"mediaType"`
	ArtifactType  string                `json:"artifactType"`
	Config        *ocispec.Descriptor   `json:"config"`
	Layers        *[]ocispec.Descriptor `json:"layers"`
	Manifests     *[]ocispec.Descriptor `json:"manifests"`
	FSLayers      *[]any                `json:"fsLayers"` // schema 1
}

// Parse reads an index or a manifest. mediaType is what the registry or the
// index said of it; "" if nothing.
func Parse(mediaType string, body []byte, limits Limits) (*Document, error) {
	if int64(len(body)) > limits.Size {
		return nil, fmt.Errorf("manifest of %d bytes, more than %d: %w", len(body), limits.Size, errdefs.ErrInvalidArgument)
	}
	var d document
	if err := decode(body, &d); err != nil {
		return nil, fmt.Errorf("reading manifest: %w", err)
	}
	if d.SchemaVersion == 1 || d.FSLayers != nil || strings.HasPrefix(d.MediaType, dockerSchema1) {
		return nil, fmt.Errorf("manifest has Docker's schema 1, which is no longer supported; push the image again with a current tool: %w", errdefs.ErrInvalidArgument)
	}
	if d.SchemaVersion != 2 {
		return nil, fmt.Errorf("manifest has schemaVersion %d, not 2: %w", d.SchemaVersion, errdefs.ErrInvalidArgument)
	}
	if (d.Layers != nil || d.Config != nil) && d.Manifests != nil {
		return nil, fmt.Errorf("manifest has both layers and manifests: %w", errdefs.ErrInvalidArgument)
	}
	if d.MediaType != "" {
		if isKnown(mediaType) && mediaType != d.MediaType {
			return nil, fmt.Errorf("manifest says it is %.128q, the registry %.128q: %w", d.MediaType, mediaType, errdefs.ErrInvalidArgument)
		}
		mediaType = d.MediaType
	}
	isIndex := d.Manifests != nil
	if isKnown(mediaType) && isIndex != (mediaType == ocispec.MediaTypeImageIndex || mediaType == DockerIndex) {
		return nil, fmt.Errorf("manifest does not have the fields of %s: %w", mediaType, errdefs.ErrInvalidArgument)
	}
	if d.MediaType != "" && !isKnown(d.MediaType) {
		return nil, fmt.Errorf("manifest of type %.128q: %w", d.MediaType, errdefs.ErrInvalidArgument)
	}
	if isIndex {
		return parseIndex(*d.Manifests, limits)
	}
	return parseManifest(&d, limits)
}

func isKnown(mediaType string) bool {
	for _, m := range Accept {
		if m == mediaType {
			return true
		}
	}
	return false
}

func parseIndex(entries []ocispec.Descriptor, limits Limits) (*Document, error) {
	if len(entries) > maxManifests {
		return nil, fmt.Errorf("index with %d manifests, more than %d: %w", len(entries), maxManifests, errdefs.ErrInvalidArgument)
	}
	for i := range entries {
		if err := check(&entries[i], limits.Size); err != nil {
			return nil, fmt.Errorf("manifest %d of the index: %w", i, err)
		}
	}
	if entries == nil {
		entries = []ocispec.Descriptor{}
	}
	return &Document{Index: entries}, nil
}

func parseManifest(d *document, limits Limits) (*Document, error) {
	if d.Config == nil || d.Layers == nil {
		return nil, fmt.Errorf("manifest without config or layers: %w", errdefs.ErrInvalidArgument)
	}
	if err := check(d.Config, limits.Size); err != nil {
		return nil, fmt.Errorf("config of the manifest: %w", err)
	}
	if d.Config.MediaType == "" {
		return nil, fmt.Errorf("config of the manifest does not say its media type: %w", errdefs.ErrInvalidArgument)
	}
	layers := *d.Layers
	if len(layers) == 0 {
		return nil, fmt.Errorf("image has no layers: %w", errdefs.ErrInvalidArgument)
	}
	if len(layers) > limits.Layers {
		return nil, fmt.Errorf("image has %d layers, more than %d: %w", len(layers), limits.Layers, errdefs.ErrInvalidArgument)
	}
	if d.Config.MediaType != ocispec.MediaTypeImageConfig && d.Config.MediaType != dockerConfig {
		return parseArtifact(d, limits)
	}
	m := &Manifest{Config: *d.Config, Layers: layers}
	for i := range layers {
		if err := checkLayer(&layers[i]); err != nil {
			return nil, fmt.Errorf("layer %d of the manifest: %w", i, err)
		}
		if layers[i].Digest == d.Config.Digest {
			return nil, fmt.Errorf("layer %d of the manifest is its config: %w", i, errdefs.ErrInvalidArgument)
		}
	}
	if err := checkSizes(m); err != nil {
		return nil, err
	}
	return &Document{Manifest: m}, nil
}

// checkSizes refuses a blob that has two sizes.
func checkSizes(m *Manifest) error {
	sizes := map[digest.Digest]int64{m.Config.Digest: m.Config.Size}
	for _, l := range m.Layers {
		if size, seen := sizes[l.Digest]; seen && size != l.Size {
			return fmt.Errorf("%s stands in the manifest with sizes %d and %d: %w", l.Digest, size, l.Size, errdefs.ErrInvalidArgument)
		}
		sizes[l.Digest] = l.Size
	}
	return nil
}

func checkLayer(d *ocispec.Descriptor) error {
	switch m := d.MediaType; {
	case strings.Contains(m, "nondistributable"), strings.Contains(m, "foreign"):
		return fmt.Errorf("foreign layers (%.128q) are not fetched from where they say: %w", m, errdefs.ErrInvalidArgument)
	case strings.HasSuffix(m, "+encrypted"):
		return fmt.Errorf("encrypted layers (%.128q) cannot be decrypted here: %w", m, errdefs.ErrInvalidArgument)
	}
	// How a layer is compressed is seen from its bytes; the type must only
	// be one of a tar.
	base, compression, plus := strings.Cut(d.MediaType, "+")
	if rest, ok := strings.CutPrefix(d.MediaType, dockerLayer); ok {
		base, compression = dockerLayer, strings.TrimLeft(rest, ".+")
		plus = rest != ""
	}
	known := !plus || compression == "gzip" || compression == "zstd"
	if (base != ociLayer && base != dockerLayer) || !known {
		return fmt.Errorf("layer type %.128q: %w", d.MediaType, errdefs.ErrInvalidArgument)
	}
	return check(d, maxBlob)
}

// check validates what is later used as a name, a length and a URL.
func check(d *ocispec.Descriptor, maxSize int64) error {
	if err := CheckDigest(d.Digest); err != nil {
		return err
	}
	if d.Size <= 0 || d.Size > maxSize {
		return fmt.Errorf("%s has the impossible size %d: %w", d.Digest, d.Size, errdefs.ErrInvalidArgument)
	}
	if len(d.URLs) > 0 {
		return fmt.Errorf("%s is to be fetched from %.128q; only its registry is asked: %w", d.Digest, d.URLs[0], errdefs.ErrInvalidArgument)
	}
	if d.Data != nil && (int64(len(d.Data)) != d.Size || digest.FromBytes(d.Data) != d.Digest) {
		return fmt.Errorf("%s comes with data that is something else: %w", d.Digest, errdefs.ErrInvalidArgument)
	}
	d.Data = nil // the registry has it too
	return nil
}

// CheckDigest accepts sha256 in its one spelling.
func CheckDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("digest %.80q: %w: %w", string(d), err, errdefs.ErrInvalidArgument)
	}
	if d.Algorithm() != digest.SHA256 {
		return fmt.Errorf("digest %.80q is not of sha256: %w", string(d), errdefs.ErrInvalidArgument)
	}
	return nil
}
