package cdi

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
)

const (
	maxPart  = 128 // bytes of a vendor, a class or a device's name
	maxNames = 256 // devices of one container
)

var (
	vendorPart = regexp.MustCompile(`^[A-Za-z](?:[A-Za-z0-9._-]*[A-Za-z0-9])?$`)
	classPart  = regexp.MustCompile(`^[A-Za-z](?:[A-Za-z0-9._-]*[A-Za-z0-9])?$`)
	namePart   = regexp.MustCompile(`^[A-Za-z0-9](?:[A-Za-z0-9._:-]*[A-Za-z0-9])?$`)
)

// parseName takes VENDOR/CLASS=NAME apart; kind is VENDOR/CLASS.
func parseName(s string) (kind, name string, err error) {
	kind, name, ok := strings.Cut(s, "=")
	if !ok || !validKind(kind) || len(name) > maxPart || !namePart.MatchString(name) {
		return "", "", fmt.Errorf("%.300q is not of the form VENDOR/CLASS=NAME: %w", s, errdefs.ErrInvalidArgument)
	}
	return kind, name, nil
}

func validKind(kind string) bool {
	vendor, class, ok := strings.Cut(kind, "/")
	return ok && len(vendor) <= maxPart && len(class) <= maxPart && vendorPart.MatchString(vendor) && classPart.MatchString(class)
}
