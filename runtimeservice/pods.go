package runtimeservice

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/cni"
	"github.com/gantry-cri/gantry/runtimeservice/lifecycle"
	"github.com/gantry-cri/gantry/sandbox"
	"github.com/gantry-cri/gantry/sandbox/cgroup"
	"github.com/gantry-cri/gantry/sandbox/rollback"
	"github.com/gantry-cri/gantry/sandbox/selinux"
)

// pods is the RPCs that change pod sandboxes; podstatus.go has those that read them.
type pods struct{ *core }

// RunPodSandbox makes a pod and returns when its containers may be created. A
// repeated request (same name, namespace, uid and attempt) joins the first, or
// makes the pod once the first has been rolled back.
func (s *pods) RunPodSandbox(ctx context.Context, req *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	h, err := s.handler(req.GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	plan, err := s.planPod(req.GetConfig())
	if err != nil {
		return nil, err
	}
	if plan.userns != nil && !h.Features.HasUserNamespaces() {
		return nil, fmt.Errorf("namespace_options.userns_options: runtime handler %q has no user namespaces: %w", h.Name, errdefs.ErrFailedPrecondition)
	}
	for _, w := range plan.warnings {
		klog.FromContext(ctx).Info("Pod is not made quite as asked for", "because", w)
	}
	for {
		p, err := s.newPod(req, plan, h)
		if err != nil {
			return nil, err
		}
		old := s.index.addPod(p)
		if old == nil {
			if err := s.makePod(ctx, p, plan, h); err != nil {
				return nil, fmt.Errorf("pod %s/%s: %w", p.key.namespace, p.key.name, partMissing(err))
			}
			return &runtimeapi.RunPodSandboxResponse{PodSandboxId: p.id}, nil
		}
		select {
		case <-old.made:
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for the first request for pod %s/%s: %w", p.key.namespace, p.key.name, context.Cause(ctx))
		}
		if old.getState() == lifecycle.PodReady {
			return &runtimeapi.RunPodSandboxResponse{PodSandboxId: old.id}, nil
		}
		s.index.freePodKey(old)
	}
}

// makePod does the steps of RunPodSandbox; after an error all is undone.
func (s *pods) makePod(ctx context.Context, p *pod, plan podPlan, h Handler) (err error) {
	defer close(p.made)
	if err := p.op.lock(ctx); err != nil {
		s.index.removePod(p)
		return err
	}
	defer p.op.unlock()
	var undo rollback.Stack
	defer func() {
		if err != nil {
			err = errors.Join(err, s.forgetPod(ctx, p, &undo))
		}
	}()

	if err := s.labelPod(p); err != nil {
		return err
	}
	plan.sandbox.ID, plan.sandbox.Label = p.id, p.getLabels().Mount
	undo.Add("the pod's cgroups", func(context.Context) error { return s.removePodCgroups(p) })
	undo.Add("the pod's namespaces and files", func(context.Context) error { return s.host.RemovePod(p.id) })
	paths, err := s.host.CreatePod(plan.sandbox, func() error {
		if err := s.makePodCgroups(p, plan.cgroupParent); err != nil { // writes the record of the intent
			return err
		}
		if dir := p.config.GetLogDirectory(); dir != "" {
			made, err := s.host.OpenPath(ctx, dir+"/") // which is then no file
			if err != nil {
				return fmt.Errorf("making log_directory %q: %w", dir, err)
			}
			_ = made.Close()
		}
		return nil
	})
	if err != nil {
		return err
	}
	if p.own.Net {
		network := s.podNetwork(p)
		undo.Add("the pod's network", func(ctx context.Context) error { return s.networks.Detach(ctx, network) })
		if err := s.attach(ctx, p, network, plan); err != nil {
			return err
		}
	}
	if sharedPID(p.config) {
		undo.Add("the pod's init", func(ctx context.Context) error { return s.host.DeleteContainer(ctx, p.id) })
		if err := s.startPodInit(ctx, p, paths, h); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil { // the caller has gone: it will ask again
		return context.Cause(ctx)
	}
	return s.commitPod(p, lifecycle.PodMade)
}

// forgetPod rolls a pod back that could not be made. If that fails, the pod is
// shown as one that is not ready: the kubelet removes those, and asks until it
// succeeds. What the pod may still have, an address say, is thus not forgotten.
// Only a record that a failing disk keeps is: the next start undoes that pod again.
func (s *pods) forgetPod(ctx context.Context, p *pod, undo *rollback.Stack) error {
	if err := undo.Undo(ctx); err != nil {
		klog.FromContext(ctx).Error(err, "Roll-back of a pod is incomplete, it stays as not ready until it is removed", "pod", klog.KRef(p.key.namespace, p.key.name), "podID", p.id)
		return errors.Join(err, s.abandonPod(p))
	}
	err := s.deletePodRecord(p)
	if err != nil {
		selinux.Release(p.getLabels())
	}
	p.set(lifecycle.PodGone)
	s.index.removePod(p)
	return err
}

// abandonPod leaves a pod that could be neither made nor undone to StopPodSandbox and RemovePodSandbox.
func (c *core) abandonPod(p *pod) error {
	c.index.freePodKey(p)
	err := c.commitPod(p, lifecycle.PodStop)
	if err != nil { // the record says Creating, of which the next start makes the same
		p.set(lifecycle.PodStopping)
	}
	return err
}

// savePod writes the pod's record as it is now, unless it was deleted.
func (c *core) savePod(p *pod) error {
	p.recordMu.Lock()
	defer p.recordMu.Unlock()
	if p.gone {
		return nil
	}
	return c.podStore.Put(p.id, p.snapshot())
}

// commitPod lets an event happen to the pod: first in its record, then for all to see.
func (c *core) commitPod(p *pod, e lifecycle.PodEvent) error {
	p.recordMu.Lock()
	defer p.recordMu.Unlock()
	rec := p.snapshot()
	next, err := rec.State.On(e)
	if err != nil {
		return refusal("pod", p.id, err)
	}
	rec.State = next
	if err := c.podStore.Put(p.id, rec); err != nil {
		return err
	}
	p.set(next)
	return nil
}

// losePod makes a pod not ready whose namespaces or init are gone. If that cannot be written down, it is so all the same:
// the next start will find it out again.
func (c *core) losePod(p *pod) error {
	err := c.commitPod(p, lifecycle.PodLost)
	p.recordMu.Lock()
	defer p.recordMu.Unlock()
	if next, refused := p.getState().On(lifecycle.PodLost); err != nil && refused == nil {
		p.set(next)
	}
	return err
}

func (c *core) deletePodRecord(p *pod) error {
	p.recordMu.Lock()
	defer p.recordMu.Unlock()
	if err := c.podStore.Delete(p.id); err != nil {
		return err
	}
	if !p.gone {
		selinux.Release(p.getLabels())
	}
	p.gone = true
	return nil
}

// attach gives the pod its network.
func (s *pods) attach(ctx context.Context, p *pod, network cni.Pod, plan podPlan) error {
	res, err := s.networks.Attach(ctx, network)
	if err != nil {
		return fmt.Errorf("network: %w", err)
	}
	p.mu.Lock()
	p.ips = res.IPs
	p.mu.Unlock()
	return s.host.WritePodFile(plan.sandbox, sandbox.FileHosts, hostsFile(plan.sandbox.Hostname, res.IPs))
}

// StopPodSandbox kills the pod's containers and frees its network. It may be
// repeated; an unknown pod is success.
func (s *pods) StopPodSandbox(ctx context.Context, req *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	p, err := s.index.pod(req.GetPodSandboxId())
	if errdefs.IsNotFound(err) {
		return &runtimeapi.StopPodSandboxResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := p.op.lock(ctx); err != nil {
		return nil, fmt.Errorf("pod %s is busy: %w", p.id, err)
	}
	defer p.op.unlock()
	if err := s.stopPod(ctx, p); err != nil {
		return nil, fmt.Errorf("stopping pod %s/%s: %w", p.key.namespace, p.key.name, partMissing(err))
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

// stopPod brings a pod to NotReady. p.op is held. After an error the pod stays
// Stopping and a later call goes on.
func (s *pods) stopPod(ctx context.Context, p *pod) error {
	switch p.getState() {
	case lifecycle.PodNotReady, lifecycle.PodRemoving, lifecycle.PodGone:
		return nil
	}
	if err := s.commitPod(p, lifecycle.PodStop); err != nil {
		return err
	}
	s.index.freePodKey(p)
	var g errgroup.Group
	for _, c := range s.index.allContainers(p) {
		g.Go(func() error { return s.killContainer(ctx, c) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := s.releasePod(ctx, p); err != nil {
		return err
	}
	return s.commitPod(p, lifecycle.PodStopped)
}

// releasePod ends the pod's init and gives back its network and namespaces.
// All of it may be gone already.
func (s *pods) releasePod(ctx context.Context, p *pod) error {
	if sharedPID(p.config) {
		if err := s.host.DeleteContainer(ctx, p.id); err != nil {
			return fmt.Errorf("the pod's init: %w", err)
		}
		dir, err := cgroupDir(s.node, p.config, p.id)
		if err == nil {
			err = cgroup.RemoveEmpty(dir) // as dropContainer does
		}
		if err != nil {
			return fmt.Errorf("the cgroup of the pod's init: %w", err)
		}
	}
	if p.own.Net {
		if err := s.networks.Detach(ctx, s.podNetwork(p)); err != nil {
			return fmt.Errorf("network: %w", err)
		}
	}
	p.mu.Lock()
	p.ips = nil
	p.mu.Unlock()
	return errors.Join(p.meter.close(), s.host.ReleaseNamespaces(p.id))
}

// RemovePodSandbox removes a pod and its containers, stopping it first where
// needed. An unknown pod is success.
func (s *pods) RemovePodSandbox(ctx context.Context, req *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	p, err := s.index.pod(req.GetPodSandboxId())
	if errdefs.IsNotFound(err) {
		return &runtimeapi.RemovePodSandboxResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := p.op.lock(ctx); err != nil {
		return nil, fmt.Errorf("pod %s is busy: %w", p.id, err)
	}
	defer p.op.unlock()
	if err := s.removePod(ctx, p); err != nil {
		return nil, fmt.Errorf("removing pod %s/%s: %w", p.key.namespace, p.key.name, partMissing(err))
	}
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

// removePod removes a pod from whatever state it is in. p.op is held.
func (s *pods) removePod(ctx context.Context, p *pod) error {
	if p.getState() == lifecycle.PodGone { // removed while we waited for the lock
		return nil
	}
	if err := s.stopPod(ctx, p); err != nil {
		return err
	}
	if err := s.commitPod(p, lifecycle.PodRemove); err != nil {
		return err
	}
	return s.dropPod(ctx, p)
}

// dropPod removes what a pod has on the node, whatever of it exists, then its
// record and its entry.
func (s *pods) dropPod(ctx context.Context, p *pod) error {
	var g errgroup.Group
	for _, c := range s.index.allContainers(p) {
		g.Go(func() error { return s.removeContainer(ctx, c) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := s.releasePod(ctx, p); err != nil {
		return err
	}
	if err := s.removePodCgroups(p); err != nil {
		return err
	}
	if err := s.host.RemovePod(p.id); err != nil {
		return err
	}
	if err := s.deletePodRecord(p); err != nil {
		return err
	}
	s.index.removePod(p)
	p.set(lifecycle.PodGone)
	return nil
}
