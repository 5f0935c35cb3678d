package manifest

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Select picks the entry of an index for the platform that suits best, the
// first of several that suit as well.
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

// Match says whether a document is what the entry of an index says of it.
func Match(entry, got ocispec.Descriptor) error {
	if err := CheckDigest(got.Digest); err != nil {
		return err
	}
	if entry.Digest != got.Digest || entry.Size != got.Size {
		return fmt.Errorf("the registry has %s of %d bytes where the index has %s of %d: %w", got.Digest, got.Size, entry.Digest, entry.Size, errdefs.ErrDataLoss)
	}
	if isKnown(entry.MediaType) && isKnown(got.MediaType) && entry.MediaType != got.MediaType {
		return fmt.Errorf("%s is %s to the registry and %s to the index: %w", got.Digest, got.MediaType, entry.MediaType, errdefs.ErrInvalidArgument)
	}
	return nil
}
