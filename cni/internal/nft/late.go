package nft

import (
	"context"
	"sync"

	"github.com/containerd/errdefs"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/cni/internal/conntrack"
)

// lateFlush forgets, in the background, the flows to host ports that clients made before the ports were published: the
// walk through the kernel's table takes some 10 ms, which no RunPodSandbox should wait for, and until it is done those
// clients are where they were before. Ports that come meanwhile share the next walk. What close leaves, or a kill, is
// the next start's, whose Sweep has all ports done.
type lateFlush struct {
	mu      sync.Mutex
	queue   []conntrack.Port
	busy    bool
	closed  bool
	running sync.WaitGroup
}

func (l *lateFlush) add(ctx context.Context, ports []Port) {
	added := conntrack.Concerned(flows(ports))
	if len(added) == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.queue = append(l.queue, added...)
	if !l.busy {
		l.busy = true
		logger := klog.FromContext(ctx)
		l.running.Go(func() { l.run(klog.NewContext(context.Background(), logger)) })
	}
}

func (l *lateFlush) run(ctx context.Context) {
	for {
		l.mu.Lock()
		ports := l.queue
		l.queue = nil
		if l.closed || len(ports) == 0 {
			l.busy = false
			l.mu.Unlock()
			return
		}
		l.mu.Unlock()
		if err := forgotten(ctx, conntrack.Published, ports); err != nil {
			klog.FromContext(ctx).Error(err, "Clients that were sending to host ports before these were a pod's may not reach it")
		}
	}
}

// close waits for the walk that is under way.
func (l *lateFlush) close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.running.Wait()
}

// forgotten runs a function of package conntrack. Where the kernel has none, host ports work but for clients that
// never stop to send.
func forgotten(ctx context.Context, forget func([]conntrack.Port) (int, error), ports []conntrack.Port) error {
	n, err := forget(ports)
	if n > 0 {
		klog.FromContext(ctx).V(4).Info("Made the kernel forget flows to host ports", "flows", n)
	}
	if errdefs.IsNotImplemented(err) {
		klog.FromContext(ctx).Info("Clients of UDP host ports may wait for minutes for the pod's successor", "reason", err.Error())
		return nil
	}
	return err
}
