package cgroup

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/cgroups/v3"
	"github.com/containerd/errdefs"
)

// Version is the version of the cgroup interface that the node uses.
type Version int

// V1 is also the hybrid layout, where an almost empty version 2 hierarchy is mounted beside.
const (
	V1 Version = 1
	V2 Version = 2
)

func (v Version) String() string { return fmt.Sprintf("v%d", int(v)) }

// Detect says which cgroup version the node uses. Without any usable mount it
// is an errdefs.ErrUnavailable that says what to mount.
func Detect() (Version, error) {
	t, err := host()
	if err != nil {
		return 0, err
	}
	return t.version, nil
}

// Has reports whether a controller ("memory", "pids", "cpu", "hugetlb", ...) can be used on this node.
func Has(controller string) bool {
	t, err := host()
	return err == nil && t.dir(controller) != ""
}

// host is the node's tree; mounts of cgroups do not change while a node runs containers.
var host = sync.OnceValues(func() (*tree, error) {
	if cgroups.Mode() == cgroups.Unified {
		return unifiedTree(standardRoot)
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("finding the cgroup mounts: %w", err)
	}
	defer f.Close()
	return detect(f)
})

// tree is where the hierarchies are mounted.
type tree struct {
	version     Version
	hierarchies []hierarchy // exactly one for V2
}

type hierarchy struct {
	root        string   // mount point
	controllers []string // V1: of the mount; a named hierarchy has "name=..."; V2: of cgroup.controllers
	unified     bool     // a cgroup2 mount
}

// standardRoot is where cgroups are mounted by convention; other mounts of the same hierarchies are passed over.
const standardRoot = "/sys/fs/cgroup"

// detect finds the hierarchies of version 1 in a mountinfo file (proc_pid_mountinfo(5)).
func detect(mountinfo io.Reader) (*tree, error) {
	all, err := parseMounts(mountinfo)
	if err != nil {
		return nil, err
	}
	t := &tree{version: V1}
	seen := map[string]bool{}
	for _, h := range all {
		key := strings.Join(h.controllers, ",")
		if !seen[key] && strings.HasPrefix(h.root, standardRoot+"/") {
			seen[key] = true
			t.hierarchies = append(t.hierarchies, h)
		}
	}
	for _, c := range []string{"memory", "cpu", "cpuacct", "pids", "devices"} {
		if t.dir(c) == "" {
			return nil, fmt.Errorf("no cgroup controller %q below %s: mount cgroup2 there (or the version 1 controllers): %w",
				c, standardRoot, errdefs.ErrUnavailable)
		}
	}
	return t, nil
}

// unifiedTree is a version 2 tree mounted at root.
func unifiedTree(root string) (*tree, error) {
	data, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		return nil, fmt.Errorf("reading the cgroup controllers: %w", err)
	}
	return &tree{version: V2, hierarchies: []hierarchy{
		{root: root, controllers: strings.Fields(string(data)), unified: true},
	}}, nil
}

// parseMounts returns the cgroup and cgroup2 mounts, in order.
func parseMounts(mountinfo io.Reader) ([]hierarchy, error) {
	var out []hierarchy
	s := bufio.NewScanner(mountinfo)
	for s.Scan() {
		before, after, ok := strings.Cut(s.Text(), " - ")
		fields, super := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 6 || len(super) < 3 {
			continue
		}
		h := hierarchy{root: fields[4]}
		switch super[0] {
		case "cgroup2":
			h.unified = true
		case "cgroup":
			for opt := range strings.SplitSeq(super[2], ",") {
				if !notControllers[opt] && !strings.Contains(strings.TrimPrefix(opt, "name="), "=") {
					h.controllers = append(h.controllers, opt)
				}
			}
		default:
			continue
		}
		out = append(out, h)
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("reading mountinfo: %w", err)
	}
	return out, nil
}

// notControllers are the mount options of a version 1 hierarchy that name no controller and have no value.
var notControllers = map[string]bool{
	"rw": true, "ro": true, "xattr": true, "noprefix": true, "clone_children": true,
	"cpuset_v2_mode": true, "favordynmods": true, "nofavordynmods": true, "none": true,
}

// dir is the root of the hierarchy with a controller, "" where there is none.
func (t *tree) dir(controller string) string {
	for _, h := range t.hierarchies {
		if slices.Contains(h.controllers, controller) {
			return h.root
		}
	}
	return ""
}

// file is a file of a cgroup, "" where the controller is missing.
func (t *tree) file(controller, path, name string) string {
	root := t.dir(controller)
	if root == "" {
		return ""
	}
	return filepath.Join(root, path, name)
}

// checkPath refuses what could name another cgroup than it seems to.
func checkPath(path string) error {
	if len(path) < 2 || path[0] != '/' || filepath.Clean(path) != path || strings.ContainsAny(path, "\x00\n") {
		return fmt.Errorf("cgroup path %q: want a clean absolute path below the root, such as /pods/abc: %w",
			path, errdefs.ErrInvalidArgument)
	}
	return nil
}
