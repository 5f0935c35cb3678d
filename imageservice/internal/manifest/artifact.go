package manifest

import (
	"fmt"
	"path"
	"path/filepath"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	maxTitle     = 1024 // bytes of a path within an artifact
	maxComponent = 255  // NAME_MAX
)

// parseArtifact names the files of an artifact. A blob that stands twice under
// one name is one file.
func parseArtifact(d *document, limits Limits) (*Document, error) {
	m := &Manifest{Config: *d.Config, ArtifactType: d.ArtifactType}
	if m.ArtifactType == "" {
		m.ArtifactType = d.Config.MediaType
	}
	files := make(map[string]ocispec.Descriptor)
	for i, l := range *d.Layers {
		if err := check(&l, maxBlob); err != nil {
			return nil, fmt.Errorf("layer %d of the artifact: %w", i, err)
		}
		name := fileName(l)
		if other, taken := files[name]; taken {
			if other.Digest != l.Digest {
				return nil, fmt.Errorf("two files of the artifact are called %q: %w", name, errdefs.ErrInvalidArgument)
			}
			continue
		}
		files[name] = l
		m.Layers = append(m.Layers, l)
		m.Files = append(m.Files, name)
	}
	for _, name := range m.Files {
		for dir := path.Dir(name); dir != "." && dir != "/"; dir = path.Dir(dir) {
			if _, taken := files[dir]; taken {
				return nil, fmt.Errorf("the artifact has %q as a file and as a directory: %w", dir, errdefs.ErrInvalidArgument)
			}
		}
	}
	if err := checkSizes(m); err != nil {
		return nil, err
	}
	return &Document{Manifest: m}, nil
}

// fileName is the blob's title if that is a plain relative path, else one made
// of its digest.
func fileName(d ocispec.Descriptor) string {
	title := d.Annotations[ocispec.AnnotationTitle]
	plain := title != "." && len(title) <= maxTitle && filepath.IsLocal(title) && path.Clean(title) == title &&
		utf8.ValidString(title) && !strings.ContainsFunc(title, unicode.IsControl)
	for part := range strings.SplitSeq(title, "/") {
		plain = plain && len(part) <= maxComponent
	}
	if plain {
		return title
	}
	return d.Digest.Algorithm().String() + "-" + d.Digest.Encoded()
}
