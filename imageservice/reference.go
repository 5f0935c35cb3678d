package imageservice

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
)

// parseReference completes a name: docker.io for a missing registry, latest
// for a missing tag. Of a name with tag and digest only the digest counts.
func parseReference(ref string) (reference.Named, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return nil, fmt.Errorf("image reference %q: %w: %w", abbreviate(ref), err, errdefs.ErrInvalidArgument)
	}
	return named, nil
}

// object is the part of a complete name that a manifest is asked by.
func object(named reference.Named) string {
	if d, ok := named.(reference.Digested); ok {
		return d.Digest().String()
	}
	return named.(reference.Tagged).Tag()
}

// familiar is the name as a person would write it.
func familiar(name string) string {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	return reference.FamiliarString(named)
}

// match compares with a pattern in which `*` stands for any text.
func match(pattern, s string) bool {
	head, rest, star := strings.Cut(pattern, "*")
	if !star {
		return pattern == s
	}
	if !strings.HasPrefix(s, head) {
		return false
	}
	s = s[len(head):]
	parts := strings.Split(rest, "*")
	for _, part := range parts[:len(parts)-1] {
		i := strings.Index(s, part)
		if i < 0 {
			return false
		}
		s = s[i+len(part):]
	}
	return strings.HasSuffix(s, parts[len(parts)-1])
}

// abbreviate keeps a hostile text from filling the log.
func abbreviate(s string) string {
	if len(s) > 256 {
		return s[:256] + "…"
	}
	return s
}
