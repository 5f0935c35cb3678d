package runtimeservice

import (
	"context"
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/runtimeservice/ocispec"
	"github.com/gantry-cri/gantry/sandbox/selinux"
)

// SELinux labels. A pod's are drawn once, before its record is written, and
// stand in the record until the pod is gone. They are what counts: a pod that
// was made without any, before selinux = true, gets containers without any.

func selinuxOptions(o *runtimeapi.SELinuxOption) selinux.Options {
	return selinux.Options{User: o.GetUser(), Role: o.GetRole(), Type: o.GetType(), Level: o.GetLevel()}
}

// labelPod draws the labels of a pod that is being made.
func (c *core) labelPod(p *pod) error {
	if !c.node.SELinux {
		return nil
	}
	l, err := selinux.New(selinuxOptions(p.config.GetLinux().GetSecurityContext().GetSelinuxOptions()))
	if err != nil {
		return fmt.Errorf("selinux_options: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.labels = l
	return nil
}

// containerLabels are those of a container of the pod: the pod's, and so its
// level, but for the parts that the container's own options name. The process
// of a privileged container has none, for it is not to be confined, unless the
// options name a type for it; its files have the pod's, as siblings share them.
func (p *pod) containerLabels(sc *runtimeapi.LinuxContainerSecurityContext) (selinux.Labels, error) {
	l := p.getLabels()
	if l == (selinux.Labels{}) {
		return l, nil
	}
	l, err := l.With(selinuxOptions(sc.GetSelinuxOptions()))
	if err != nil {
		return selinux.Labels{}, fmt.Errorf("selinux_options: %w", err)
	}
	if sc.GetPrivileged() && sc.GetSelinuxOptions().GetType() == "" {
		l.Process = ""
	}
	return l, nil
}

func (p *pod) getLabels() selinux.Labels {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.labels
}

// relabel gives the files of those mounts that the request wants it for the
// label of the container's files. Others are never touched, wherever they are
// mounted: the kubelet knows which files are the pod's (CVE-2021-43816). All of
// the request has been found good by now, for labels are not set back.
func relabel(ctx context.Context, mounts []ocispec.Mount, label string, do func(ctx context.Context, path, label string) error) error {
	for i, m := range mounts {
		if label == "" || !m.CRI.GetSelinuxRelabel() || m.CRI.GetImage() != nil { // an image volume is mounted with the label
			continue
		}
		if err := do(ctx, m.Source, label); err != nil {
			return fmt.Errorf("mounts[%d].selinux_relabel: host_path %q: %w", i, m.CRI.GetHostPath(), err)
		}
	}
	return nil
}
