package imageservice

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// noShortNames as Config.ShortNames refuses names without a registry.
const noShortNames = "none"

// checkShortNames is of the configuration.
func checkShortNames(short string) error {
	if short == "" || short == noShortNames {
		return nil
	}
	if named, err := parseReference(short + "/x"); err != nil || reference.Domain(named) != short {
		return fmt.Errorf("registry of short names %q is neither a registry's host nor %q: %w", abbreviate(short), noShortNames, errdefs.ErrInvalidArgument)
	}
	return nil
}

// reference completes a name as it is configured: with the registry of short
// names where it has none.
func (s *Service) reference(ref string) (reference.Named, error) {
	switch short := s.cfg.ShortNames; {
	case short == "" || short == "docker.io" || hasRegistry(ref) || isID(ref):
		return parseReference(ref)
	case short == noShortNames:
		return nil, fmt.Errorf("image reference %s has no registry, and short names are not allowed: %w", quoted(ref), errdefs.ErrInvalidArgument)
	default:
		return parseReference(short + "/" + ref)
	}
}

// hasRegistry says whether a name begins with a registry, by the rules of the
// distribution library: a host has a dot, a port or a capital, or is localhost.
func hasRegistry(ref string) bool {
	first, _, ok := strings.Cut(ref, "/")
	return ok && (strings.ContainsAny(first, ".:") || first == "localhost" || strings.ToLower(first) != first)
}

// maxReference is more than the longest name has: 255 for each of host and
// path, a tag of 128 and a digest.
const maxReference = 1024

// parseReference completes a name: docker.io for a missing registry, latest
// for a missing tag. Of a name with tag and digest only the digest counts.
// Names that mean the same come out the same, and a name means one thing.
func parseReference(ref string) (reference.Named, error) {
	named, err := parse(ref)
	if err != nil {
		return nil, fmt.Errorf("image reference %s: %w: %w", quoted(ref), err, errdefs.ErrInvalidArgument)
	}
	return named, nil
}

func parse(ref string) (reference.Named, error) {
	if len(ref) > maxReference {
		return nil, fmt.Errorf("longer than %d bytes", maxReference)
	}
	if isID(ref) {
		return nil, errors.New("the id of an image, not a name")
	}
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return nil, err
	}
	if d, ok := named.(reference.Digested); ok && d.Digest().Algorithm() != digest.SHA256 {
		return nil, fmt.Errorf("digest by %s instead of sha256", d.Digest().Algorithm())
	}
	domain := reference.Domain(named)
	canonical, err := canonicalDomain(domain)
	if err != nil || canonical == domain {
		return named, err
	}
	return reference.ParseDockerRef(canonical + strings.TrimPrefix(named.String(), domain))
}

// canonicalDomain spells a registry's host and port in one way.
func canonicalDomain(domain string) (string, error) {
	host, port, err := net.SplitHostPort(domain)
	if err != nil {
		host, port = strings.Trim(domain, "[]"), ""
	} else if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || port[0] == '0' {
		return "", fmt.Errorf("port %q is none", port)
	}
	host = strings.ToLower(host)
	if strings.HasPrefix(domain, "[") {
		ip, err := netip.ParseAddr(host)
		if err != nil || ip.Is4In6() {
			return "", fmt.Errorf("%q is not an IPv6 address", host)
		}
		host = "[" + ip.String() + "]"
	}
	if port != "" {
		host += ":" + port
	}
	return host, nil
}

// isID is for a digest alone, which would be a repository of that name.
func isID(ref string) bool {
	hex, ok := strings.CutPrefix(ref, "sha256:")
	return ok && len(hex) == 64 && isHex(hex)
}

// quoted shows a name in an error, but no password that stands before a host.
func quoted(ref string) string {
	if i := strings.IndexByte(ref, '@'); i >= 0 && strings.Contains(ref[i:], "/") {
		ref = "…" + ref[i:]
	}
	return strconv.Quote(abbreviate(ref))
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
