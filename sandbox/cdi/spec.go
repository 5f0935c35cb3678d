package cdi

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	cdispec "tags.cncf.io/container-device-interface/specs-go"
)

// versions are those whose meaning is known: a newer one may say what must not
// be overlooked.
var versions = regexp.MustCompile(`^v?(?:0\.[3-9]\.\d{1,3}|1\.[01]\.\d{1,3})$`)

var hookNames = []string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"}

// parseSpec reads one spec, in YAML or in JSON, which is YAML too. Unknown keys are errors.
func parseSpec(data []byte) (*cdispec.Spec, error) {
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.KnownFields(true)
	spec := new(cdispec.Spec)
	if err := d.Decode(spec); err != nil {
		return nil, err
	}
	if err := d.Decode(new(any)); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one document")
	}
	if !versions.MatchString(spec.Version) {
		return nil, fmt.Errorf("cdiVersion %.40q is not one from 0.3.0 to 1.1", spec.Version)
	}
	if !validKind(spec.Kind) {
		return nil, fmt.Errorf("kind %.300q is not of the form VENDOR/CLASS", spec.Kind)
	}
	if err := checkEdits(spec.ContainerEdits); err != nil {
		return nil, fmt.Errorf("containerEdits: %w", err)
	}
	seen := map[string]bool{}
	for _, d := range spec.Devices {
		if len(d.Name) > maxPart || !namePart.MatchString(d.Name) {
			return nil, fmt.Errorf("device %.300q: a name has letters, digits, \".\", \"_\", \":\" and \"-\"", d.Name)
		}
		if seen[d.Name] {
			return nil, fmt.Errorf("device %q is there twice", d.Name)
		}
		seen[d.Name] = true
		if err := checkEdits(d.ContainerEdits); err != nil {
			return nil, fmt.Errorf("device %q: %w", d.Name, err)
		}
	}
	return spec, nil
}

func checkEdits(e cdispec.ContainerEdits) error {
	for _, v := range e.Env {
		if name, _, ok := strings.Cut(v, "="); !ok || name == "" || strings.Contains(v, "\x00") {
			return fmt.Errorf("env %.100q is not of the form NAME=value", v)
		}
	}
	for _, d := range e.DeviceNodes {
		switch {
		case d == nil || !clean(d.Path):
			return errors.New("deviceNodes: a path is not clean and absolute")
		case d.HostPath != "" && !clean(d.HostPath):
			return fmt.Errorf("device node %q: hostPath %q is not clean and absolute", d.Path, d.HostPath)
		case !slices.Contains([]string{"", "b", "c", "u", "p"}, d.Type):
			return fmt.Errorf("device node %q: type %q is none of b, c, u and p", d.Path, d.Type)
		case strings.Trim(d.Permissions, "rwm") != "":
			return fmt.Errorf("device node %q: permissions %q are not of r, w and m", d.Path, d.Permissions)
		case d.Major < 0 || d.Minor < 0 || d.Major >= 1<<12 || d.Minor >= 1<<20:
			return fmt.Errorf("device node %q: there is no device %d:%d", d.Path, d.Major, d.Minor)
		}
	}
	for _, m := range e.Mounts {
		if m == nil || !clean(m.ContainerPath) || !clean(m.HostPath) && !(m.Type == "tmpfs" && m.HostPath != "") {
			return errors.New("mounts: a path is not clean and absolute")
		}
	}
	for _, h := range e.Hooks {
		switch {
		case h == nil || !slices.Contains(hookNames, h.HookName):
			return errors.New("hooks: an unknown hookName")
		case !clean(h.Path):
			return fmt.Errorf("hook %s: path %q is not clean and absolute", h.HookName, h.Path)
		case h.Timeout != nil && *h.Timeout <= 0:
			return fmt.Errorf("hook %q: timeout %d is not positive", h.Path, *h.Timeout)
		case slices.ContainsFunc(h.Env, func(v string) bool { return !strings.Contains(v, "=") }):
			return fmt.Errorf("hook %q: an entry of env is not of the form NAME=value", h.Path)
		}
	}
	return nil
}

// clean is whether p is absolute, without "." and "..", and not the root.
func clean(p string) bool {
	return path.IsAbs(p) && path.Clean(p) == p && p != "/" && !strings.Contains(p, "\x00")
}
