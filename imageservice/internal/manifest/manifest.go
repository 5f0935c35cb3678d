package manifest

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Media types of Docker's manifests, schema 2.
const (
	DockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	DockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerSchema1  = "application/vnd.docker.distribution.manifest.v1"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar"
	ociLayer       = "application/vnd.oci.image.layer.v1.tar"
)

// Accept are the media types to ask a registry for.
var Accept = []string{ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, DockerIndex, DockerManifest}

const (
	// MaxSize bounds one document, in bytes.
	MaxSize = 4 << 20
	// MaxLayers is what overlayfs can stack.
	MaxLayers = 500
	// maxManifests bounds the entries of an index.
	maxManifests = 1024
)

// Document is an index or a manifest, never both.
type Document struct {
	Index    []ocispec.Descriptor // entries of an index; nil for a manifest
	Manifest *Manifest
}

// Manifest names the parts of one image.
type Manifest struct {
	Config ocispec.Descriptor
	Layers []ocispec.Descriptor // lowest first
}

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
func Parse(mediaType string, body []byte) (*Document, error) {
	if len(body) > MaxSize {
		return nil, fmt.Errorf("manifest of %d bytes, more than %d: %w", len(body), MaxSize, errdefs.ErrInvalidArgument)
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
		return parseIndex(*d.Manifests)
	}
	return parseManifest(&d)
}

func isKnown(mediaType string) bool {
	for _, m := range Accept {
		if m == mediaType {
			return true
		}
	}
	return false
}

func parseIndex(entries []ocispec.Descriptor) (*Document, error) {
	if len(entries) > maxManifests {
		return nil, fmt.Errorf("index with %d manifests, more than %d: %w", len(entries), maxManifests, errdefs.ErrInvalidArgument)
	}
	for i := range entries {
		if err := check(&entries[i], MaxSize); err != nil {
			return nil, fmt.Errorf("manifest %d of the index: %w", i, err)
		}
	}
	if entries == nil {
		entries = []ocispec.Descriptor{}
	}
	return &Document{Index: entries}, nil
}

func parseManifest(d *document) (*Document, error) {
	if d.Config == nil || d.Layers == nil {
		return nil, fmt.Errorf("manifest without config or layers: %w", errdefs.ErrInvalidArgument)
	}
	if err := check(d.Config, MaxSize); err != nil {
		return nil, fmt.Errorf("config of the manifest: %w", err)
	}
	switch d.Config.MediaType {
	case ocispec.MediaTypeImageConfig, "application/vnd.docker.container.image.v1+json":
	default:
		return nil, fmt.Errorf("not an image but an artifact (config type %.128q, artifact type %.128q): %w", d.Config.MediaType, d.ArtifactType, errdefs.ErrInvalidArgument)
	}
	layers := *d.Layers
	if len(layers) == 0 {
		return nil, fmt.Errorf("image has no layers: %w", errdefs.ErrInvalidArgument)
	}
	if len(layers) > MaxLayers {
		return nil, fmt.Errorf("image has %d layers, more than %d: %w", len(layers), MaxLayers, errdefs.ErrInvalidArgument)
	}
	sizes := map[digest.Digest]int64{d.Config.Digest: d.Config.Size}
	for i := range layers {
		if err := checkLayer(&layers[i]); err != nil {
			return nil, fmt.Errorf("layer %d of the manifest: %w", i, err)
		}
		if size, seen := sizes[layers[i].Digest]; seen && size != layers[i].Size {
			return nil, fmt.Errorf("%s stands in the manifest with sizes %d and %d: %w", layers[i].Digest, size, layers[i].Size, errdefs.ErrInvalidArgument)
		}
		sizes[layers[i].Digest] = layers[i].Size
		if layers[i].Digest == d.Config.Digest {
			return nil, fmt.Errorf("layer %d of the manifest is its config: %w", i, errdefs.ErrInvalidArgument)
		}
	}
	return &Document{Manifest: &Manifest{Config: *d.Config, Layers: layers}}, nil
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
	return check(d, 1<<42)
}

// check validates what is later used as a name, a length and a URL.
func check(d *ocispec.Descriptor, maxSize int64) error {
	if err := CheckDigest(d.Digest); err != nil {
		return err
	}
	if d.Size <= 0 || d.Size > maxSize {
		return fmt.Errorf("%s has the impossible size %d: %w", d.Digest, d.Size, errdefs.ErrInvalidArgument)
	}
	d.URLs, d.Data = nil, nil // never used: only the registry's answer counts
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

// Select picks the entry of an index for the platform that suits best.
// Attestations and other entries that no platform runs are passed over.
func Select(entries []ocispec.Descriptor, want platforms.MatchComparer) (ocispec.Descriptor, error) {
	var best *ocispec.Descriptor
	var there []string
	for i := range entries {
		e := &entries[i]
		if e.Annotations["vnd.docker.reference.type"] != "" {
			continue
		}
		if e.Platform == nil {
			// An index of one image or one index need not say.
			if len(entries) == 1 {
				return *e, nil
			}
			if e.MediaType != ocispec.MediaTypeImageIndex && e.MediaType != DockerIndex {
				continue
			}
			if best == nil {
				best = e
			}
			continue
		}
		p := platforms.Normalize(*e.Platform)
		if p.OS == "unknown" || p.Architecture == "unknown" {
			continue
		}
		there = append(there, platforms.Format(p))
		if want.Match(p) && (best == nil || best.Platform == nil || want.Less(p, platforms.Normalize(*best.Platform))) {
			best = e
		}
	}
	if best == nil {
		return ocispec.Descriptor{}, fmt.Errorf("no image for this node's platform %s; the index has %s: %w",
			platforms.DefaultString(), listed(there), errdefs.ErrNotFound)
	}
	return *best, nil
}

func listed(names []string) string {
	if len(names) == 0 {
		return "no platforms"
	}
	if len(names) > 20 {
		names = append(names[:20:20], "…")
	}
	return strings.Join(names, ", ")
}

// Config is the part of an image config that Gantry uses.
type Config struct {
	ocispec.Image
	ChainIDs []digest.Digest // of the layers up to each one
}

// ParseConfig reads an image config that goes with layers many layers.
func ParseConfig(body []byte, layers int, want platforms.MatchComparer) (*Config, error) {
	if len(body) > MaxSize {
		return nil, fmt.Errorf("image config of %d bytes, more than %d: %w", len(body), MaxSize, errdefs.ErrInvalidArgument)
	}
	var c Config
	if err := decode(body, &c.Image); err != nil {
		return nil, fmt.Errorf("reading image config: %w", err)
	}
	if c.RootFS.Type != "layers" {
		return nil, fmt.Errorf("image config has rootfs type %.64q, not \"layers\": %w", c.RootFS.Type, errdefs.ErrInvalidArgument)
	}
	if len(c.RootFS.DiffIDs) != layers {
		return nil, fmt.Errorf("image config has %d diff_ids for %d layers: %w", len(c.RootFS.DiffIDs), layers, errdefs.ErrInvalidArgument)
	}
	for _, d := range c.RootFS.DiffIDs {
		if err := CheckDigest(d); err != nil {
			return nil, fmt.Errorf("diff_ids of the image config: %w", err)
		}
	}
	if p := platforms.Normalize(c.Platform); p.OS != "" && p.Architecture != "" && !want.Match(p) {
		return nil, fmt.Errorf("image is for %s, this node is %s: %w", platforms.Format(p), platforms.DefaultString(), errdefs.ErrFailedPrecondition)
	}
	c.ChainIDs = identity.ChainIDs(append([]digest.Digest(nil), c.RootFS.DiffIDs...))
	return &c, nil
}
