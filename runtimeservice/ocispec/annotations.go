package ocispec

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// Bounds of what annotations may add to a spec, in bytes: one value, and all
// keys and values together, the sum that the API server allows on an object.
const (
	maxAnnotationValue = 64 << 10
	maxAnnotations     = 256 << 10
)

// unsafeAnnotations are known to make runc or crun do what only the node's
// administrator may ask for: set properties of systemd units, run other
// programs, read CRIU's configuration (CVE-2024-3154). An entry that ends in
// "." stands for all keys that begin with it. `features` names those of the
// runtime at hand, which an old one does not.
var unsafeAnnotations = []string{
	"bundle", "io.kubernetes.cri.container-type", "module.wasm.image/variant",
	"org.criu.config", "org.systemd.property.", "run.oci.",
}

var annotationEntry = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/-]{0,315}$`)

// AnnotationFilter is which annotations of pods and containers an OCI runtime
// is given: a handler's allow-list. The zero value lets none pass.
type AnnotationFilter struct {
	exact, prefixes, unsafe []string
}

// NewAnnotationFilter makes a filter of a handler's allow-list: a whole key, or
// PREFIX/* for every key that begins with PREFIX/. Nothing else is a pattern:
// a list that matched by prefix alone let pods past it (CVE-2023-6476).
// unsafe is what the runtime itself names so. An entry for an annotation that
// is known to be unsafe is an error, and none passes by a prefix either.
func NewAnnotationFilter(entries, unsafe []string) (AnnotationFilter, error) {
	f := AnnotationFilter{unsafe: slices.Concat(unsafeAnnotations, unsafe)}
	for _, e := range entries {
		name, prefix := strings.CutSuffix(e, "/*")
		if !annotationEntry.MatchString(name) {
			return f, fmt.Errorf("%q is neither an annotation's key nor PREFIX/*: correct it: %w", e, errdefs.ErrInvalidArgument)
		}
		if isUnsafe(f.unsafe, name) {
			return f, fmt.Errorf("%q lets pods change how the node runs them (CVE-2024-3154): remove it: %w", e, errdefs.ErrInvalidArgument)
		}
		if prefix {
			f.prefixes = append(f.prefixes, name+"/")
		} else {
			f.exact = append(f.exact, name)
		}
	}
	return f, nil
}

func isUnsafe(list []string, key string) bool {
	return slices.ContainsFunc(list, func(u string) bool {
		return key == u || strings.HasSuffix(u, ".") && strings.HasPrefix(key, u)
	})
}

func (f AnnotationFilter) passes(key string) bool {
	if isUnsafe(f.unsafe, key) {
		return false
	}
	return slices.Contains(f.exact, key) ||
		slices.ContainsFunc(f.prefixes, func(p string) bool { return strings.HasPrefix(key, p) && len(key) > len(p) })
}

// apply is the annotations of the spec: those of the pod that pass, then those
// of the container over them. nil when there are none.
func (f AnnotationFilter) apply(pod, container map[string]string) (map[string]string, error) {
	if len(f.exact) == 0 && len(f.prefixes) == 0 {
		return nil, nil
	}
	var out map[string]string
	for _, from := range []map[string]string{pod, container} {
		for key, value := range from {
			if !f.passes(key) {
				continue
			}
			if err := checkAnnotation(value); err != nil {
				return nil, fmt.Errorf("annotations: %q %w", key, err)
			}
			if out == nil {
				out = map[string]string{}
			}
			out[key] = value
		}
	}
	size := 0
	for key, value := range out {
		size += len(key) + len(value)
	}
	if size > maxAnnotations {
		return nil, fmt.Errorf("annotations: those for the OCI runtime have %d bytes, more than %d: %w", size, maxAnnotations, errdefs.ErrInvalidArgument)
	}
	return out, nil
}

// allowsAnnotations is whether all keys pass, or are ours.
func (n Node) allowsAnnotations(annotations map[string]string) bool {
	for key := range annotations {
		if !n.Annotations.passes(key) && !unitProperty(n, key) {
			return false
		}
	}
	return true
}

func checkAnnotation(value string) error {
	if len(value) > maxAnnotationValue {
		return fmt.Errorf("has a value of %d bytes, an OCI runtime is given %d at most: %w", len(value), maxAnnotationValue, errdefs.ErrInvalidArgument)
	}
	if strings.Contains(value, "\x00") {
		return fmt.Errorf("has a value with a NUL byte: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}
