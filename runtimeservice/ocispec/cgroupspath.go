package ocispec

import (
	"fmt"
	"path"
	"strings"

	"github.com/containerd/errdefs"
)

// CgroupsPath is the cgroup of a container (or of a pod's init) beneath the
// pod's cgroup_parent, in the form that the OCI runtime takes for the node's
// driver: an absolute path below the hierarchies' roots, or slice:gantry:id.
// An empty parent means /gantry, or system.slice.
//
// A parent of the other driver's form is an error, for the kubelet and Gantry
// then disagree and the pod's limits would hold for an empty cgroup. Slices may
// be given with their ancestors (/a.slice/a-b.slice) if these are the right ones.
func CgroupsPath(n Node, parent, id string) (string, error) {
	if !plainName(id) {
		return "", fmt.Errorf("cgroup name %q: %w", id, errdefs.ErrInvalidArgument)
	}
	if n.Systemd {
		slice, err := systemdSlice(parent)
		if err != nil {
			return "", err
		}
		return slice + ":gantry:" + id, nil
	}
	if parent == "" {
		return "/gantry/" + id, nil
	}
	if err := checkCgroupParent(parent); err != nil {
		return "", err
	}
	if strings.HasSuffix(path.Clean(parent), ".slice") {
		return "", fmt.Errorf("cgroup_parent %q is a systemd slice, but this node uses the cgroupfs driver: use one driver in the kubelet and in Gantry: %w",
			parent, errdefs.ErrInvalidArgument)
	}
	return path.Join("/", parent, id), nil
}

// systemdSlice is the last component of parent, checked.
func systemdSlice(parent string) (string, error) {
	if parent == "" {
		return "system.slice", nil
	}
	if err := checkCgroupParent(parent); err != nil {
		return "", err
	}
	above := ""
	for i, slice := range strings.Split(strings.Trim(path.Clean(parent), "/"), "/") {
		stem, ok := strings.CutSuffix(slice, ".slice")
		if !ok || !plainName(stem) || strings.HasSuffix(stem, "-") || strings.Contains(stem, "--") {
			return "", fmt.Errorf("cgroup_parent %q: %q is not the name of a systemd slice (a-b.slice), which this node's systemd driver needs: %w",
				parent, slice, errdefs.ErrInvalidArgument)
		}
		if i > 0 && stem != above+"-"+stem[strings.LastIndex(stem, "-")+1:] {
			return "", fmt.Errorf("cgroup_parent %q: slice %q does not lie in %q: %w", parent, slice, above+".slice", errdefs.ErrInvalidArgument)
		}
		above = stem
	}
	return above + ".slice", nil
}

// checkCgroupParent takes what may stand in a cgroup path: components of
// printable ASCII, none of them "..", and no colon, which would end a field of
// /proc/PID/cgroup.
func checkCgroupParent(parent string) error {
	refuse := func(why string) error {
		return fmt.Errorf("cgroup_parent %q %s: %w", parent, why, errdefs.ErrInvalidArgument)
	}
	if len(parent) > 2048 {
		return fmt.Errorf("cgroup_parent has %d bytes, more than 2048: %w", len(parent), errdefs.ErrInvalidArgument)
	}
	if strings.ContainsFunc(parent, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`:\"'`, r) }) {
		return refuse("holds a character that no cgroup path has")
	}
	if strings.Trim(parent, "/") == "" {
		return refuse("is the root of the hierarchy")
	}
	for _, c := range strings.Split(strings.Trim(parent, "/"), "/") {
		if c == "" || c == "." || c == ".." || len(c) > 255 {
			return refuse(fmt.Sprintf("has the component %q", c))
		}
	}
	return nil
}

// plainName takes letters, digits, "_", "-" and ".", up to 200 bytes, and
// neither of the last two as the first.
func plainName(s string) bool {
	return s != "" && len(s) <= 200 && s[0] != '.' && s[0] != '-' && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_-.", r))
	})
}
