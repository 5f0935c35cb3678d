package manifest

import (
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Config is the part of an image config that Gantry uses.
type Config struct {
	ocispec.Image
	ChainIDs []digest.Digest // of the layers up to each one
}

// ParseConfig reads an image config that goes with layers many layers.
func ParseConfig(body []byte, layers int, want platforms.MatchComparer) (*Config, error) {
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
