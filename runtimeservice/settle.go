package runtimeservice

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/runtimeservice/lifecycle"
	"github.com/gantry-cri/gantry/sandbox"
)

const (
	// settleWait is how long the start waits for what it finishes or undoes. What takes longer, because something of it
	// hangs, goes on behind: its pod is locked, and shown in the state that it leaves.
	settleWait = 5 * time.Second
	// settleTimeout bounds it for one pod: what cannot be ended in this time waits for the kubelet's next try.
	settleTimeout = time.Minute
	settleAtOnce  = 16 // pods
)

// settle finishes or undoes what the records announce, and removes what belongs to nobody. Its errors are logged, for
// the daemon must serve. What it leaves to background ends with ctx.
func (c *core) settle(ctx context.Context, background *sync.WaitGroup) {
	log := klog.FromContext(ctx)
	all, err := c.announced(ctx)
	if err != nil {
		log.Error(err, "Pods of the last run are not looked at")
	}
	var g errgroup.Group
	g.SetLimit(settleAtOnce)
	settled := make(chan struct{})
	background.Go(func() {
		defer close(settled)
		g.Go(func() error { // at any time: what is being made is in the index before it is on the node
			ctx, cancel := context.WithTimeout(ctx, settleTimeout)
			defer cancel()
			if err := c.host.Sweep(ctx, c.isPod, c.isContainer); err != nil {
				log.Error(err, "Some processes, namespaces or files of the last run could not be removed")
			}
			return nil
		})
		for _, u := range all {
			g.Go(func() error {
				ctx, cancel := context.WithTimeout(ctx, settleTimeout)
				defer cancel()
				if err := c.settlePod(ctx, u); err != nil {
					log.Error(err, "A pod of the last run could not be cleaned up", "pod", klog.KRef(u.pod.key.namespace, u.pod.key.name), "podID", u.pod.id)
				}
				return nil
			})
		}
		_ = g.Wait() // no errors
	})
	select {
	case <-settled:
	case <-time.After(settleWait):
		log.Info("Some pods of the last run are still being cleaned up")
	}
	if err := c.sweep(ctx); err != nil {
		log.Error(err, "Some leftovers of the last run could not be removed")
	}
	log.Info("Took over the state of the last run", "pods", len(c.index.allPods()), "containers", len(c.index.allContainers(nil)))
}

// unsettled is a pod that the last run left on its way to another state, or with such containers. Its lock is taken,
// and those of the containers.
type unsettled struct {
	pod        *pod
	containers []*container
}

// announced gathers the pods to settle. What cannot be any more what it was, it changes at once, so that the first
// answers tell it.
func (c *core) announced(ctx context.Context) ([]unsettled, error) {
	procs, err := c.host.Processes(ctx)
	if err != nil {
		return nil, err
	}
	var errs []error
	if slices.ContainsFunc(c.index.allPods(), func(p *pod) bool { return p.own.User }) {
		errs = append(errs, c.host.LetPass()) // closed again by the start, until a pod needs it
	}
	containers := map[*pod][]*container{}
	for _, ctr := range c.index.allContainers(nil) {
		switch state := ctr.getState(); {
		case state == lifecycle.ContainerCreating, state == lifecycle.ContainerRemoving:
			containers[ctr.pod] = append(containers[ctr.pod], ctr)
		case state == lifecycle.ContainerCreated && ctr.bootID != c.bootID:
			// Its root file system's mount and its pod's namespaces are gone: it can never start.
			now := c.index.now()
			errs = append(errs, ctr.on(lifecycle.ContainerStart),
				ctr.startFailed(errors.New("the node was restarted before it was started"), now, now), c.save(ctr))
		}
	}
	var all []unsettled
	for _, p := range c.index.allPods() {
		state := p.getState()
		if state == lifecycle.PodReady && !c.whole(p, procs) {
			errs = append(errs, c.losePod(p))
			c.index.freePodKey(p)
			state = lifecycle.PodStopping
		}
		if state == lifecycle.PodReady || state == lifecycle.PodNotReady {
			if len(containers[p]) == 0 {
				continue
			}
		}
		p.op <- struct{}{} // all are free: nobody is served yet
		for _, ctr := range containers[p] {
			ctr.op <- struct{}{}
		}
		all = append(all, unsettled{p, containers[p]})
	}
	return all, errors.Join(errs...)
}

// whole reports whether containers can be started in a pod that was ready: neither a reboot, nor the loss of the run
// directory, has taken its namespaces or its init.
func (c *core) whole(p *pod, procs map[string]sandbox.Process) bool {
	init, known := procs[p.id]
	return p.bootID == c.bootID && c.host.HasNamespaces(p.id, p.own) && (!sharedPID(p.config) || known && init.Exit == nil)
}

// settlePod undoes what was being made and finishes what was being stopped or removed.
func (c *core) settlePod(ctx context.Context, u unsettled) error {
	p, rpcs := u.pod, &pods{c}
	defer p.op.unlock()
	var errs []error
	for _, ctr := range u.containers {
		errs = append(errs, c.settleContainer(ctx, ctr))
	}
	switch p.getState() {
	case lifecycle.PodCreating:
		defer close(p.made)
		if err := rpcs.dropPod(ctx, p); err != nil {
			errs = append(errs, err, c.abandonPod(p))
		}
	case lifecycle.PodRemoving:
		errs = append(errs, rpcs.dropPod(ctx, p))
	case lifecycle.PodStopping:
		errs = append(errs, rpcs.stopPod(ctx, p))
	}
	return errors.Join(errs...)
}

func (c *core) settleContainer(ctx context.Context, ctr *container) error {
	defer ctr.op.unlock()
	creating := ctr.getState() == lifecycle.ContainerCreating
	err := c.dropContainer(ctx, ctr)
	if creating {
		defer close(ctr.made)
		if err != nil {
			err = errors.Join(err, c.abandonContainer(ctr, err))
		}
	}
	return err
}

func (c *core) isPod(id string) bool {
	_, err := c.index.pod(id)
	return err == nil
}

// isContainer is true of the init of a pod with a shared PID namespace too.
func (c *core) isContainer(id string) bool {
	_, err := c.index.container(id)
	return err == nil || c.isPod(id)
}

// sweep removes what of images and networks belongs to no pod or container. Nobody is served yet.
func (c *core) sweep(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, recoverTimeout)
	defer cancel()
	var live, withRootfs []string
	for _, p := range c.index.allPods() {
		if p.own.Net && p.getState() != lifecycle.PodNotReady {
			live = append(live, p.id)
		}
	}
	for _, ctr := range c.index.allContainers(nil) {
		withRootfs = append(withRootfs, ctr.id)
	}
	return errors.Join(
		removeDumps(c.checkpointsDir()),
		os.Mkdir(c.checkpointsDir(), 0o700),
		c.images.Retain(ctx, withRootfs),
		c.networks.GC(ctx, live),
	)
}
