package runtimeservice

import (
	"path"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/runtimeservice/ocispec"
	"github.com/gantry-cri/gantry/sandbox/cgroup"
)

// cgroupDir is the directory of a container's cgroup below the roots of the
// hierarchies; with id "" it is the pod's, its cgroup_parent. An unfit
// cgroup_parent is errdefs.ErrInvalidArgument.
func cgroupDir(n ocispec.Node, pc *runtimeapi.PodSandboxConfig, id string) (string, error) {
	leaf := id
	if leaf == "" {
		leaf = "pod" // any name: only the parent's path is wanted
	}
	p, err := ocispec.CgroupsPath(n, pc.GetLinux().GetCgroupParent(), leaf)
	if err != nil {
		return "", err
	}
	if n.Systemd {
		// slice:gantry:id, which systemd makes as /a.slice/a-b.slice/gantry-id.scope.
		slice, _, _ := strings.Cut(p, ":")
		p = "/"
		stem := strings.TrimSuffix(slice, ".slice")
		for i, r := range stem + "-" {
			if r == '-' {
				p = path.Join(p, stem[:i]+".slice")
			}
		}
		p = path.Join(p, "gantry-"+leaf+".scope")
	}
	if id == "" {
		p = path.Dir(p)
	}
	return p, nil
}

// makePodCgroups makes the pod's cgroup_parent and enters what did not exist
// before in the pod's record, first: those go with the pod.
func (c *core) makePodCgroups(p *pod, parent string) error {
	c.cgroupsMu.Lock()
	defer c.cgroupsMu.Unlock()
	missing, err := cgroup.Missing(parent)
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.cgroups = append(p.cgroups, missing...) // behind ancestors that it has inherited by now
	p.mu.Unlock()
	if err := c.savePod(p); err != nil {
		return err
	}
	_, err = cgroup.MkdirParents(parent)
	return err
}

// removePodCgroups removes the cgroups that were made for the pod. One that
// other pods use by now, if only as the place where their first container will
// be, goes over to one of those, so that the last removes it.
func (c *core) removePodCgroups(p *pod) error {
	c.cgroupsMu.Lock()
	defer c.cgroupsMu.Unlock()
	p.mu.Lock()
	made := slices.Clone(p.cgroups)
	p.mu.Unlock()
	for _, dir := range slices.Backward(made) { // deepest first
		heir := c.podBelow(dir, p)
		if heir == nil {
			if err := cgroup.RemoveEmpty(dir); err != nil {
				return err
			}
			continue
		}
		heir.mu.Lock()
		heir.cgroups = append([]string{dir}, heir.cgroups...)
		heir.mu.Unlock()
		if err := c.savePod(heir); err != nil {
			return err
		}
	}
	p.mu.Lock()
	p.cgroups, p.cgroupsGone = nil, true
	p.mu.Unlock()
	return nil
}

// podBelow is a pod other than not whose cgroup parent is dir or lies below it
// and which will come to removePodCgroups. c.cgroupsMu is held.
func (c *core) podBelow(dir string, not *pod) *pod {
	for _, p := range c.index.allPods() {
		p.mu.Lock()
		gone := p.cgroupsGone
		p.mu.Unlock()
		if p == not || gone {
			continue
		}
		parent, err := cgroupDir(c.node, p.config, "")
		if err == nil && (parent == dir || strings.HasPrefix(parent, dir+"/")) {
			return p
		}
	}
	return nil
}
