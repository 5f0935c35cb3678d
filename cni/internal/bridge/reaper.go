package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// reaper deletes links in the background: the kernel answers a deletion after RCU grace periods, tens of milliseconds
// that no StopPodSandbox should wait for. What comes meanwhile is deleted together afterwards. It has a goroutine only
// while there is something to delete, and a socket of its own, so that nobody waits for its answers. What close leaves
// is the next start's, whose Sweep finds it.
type reaper struct {
	group uint32 // of links: no other's on the node

	mu      sync.Mutex
	pending map[string]chan struct{} // link -> closed once its turn is over
	queue   []string
	closed  bool
	running sync.WaitGroup
}

// add queues a link, once.
func (r *reaper) add(ctx context.Context, link string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.pending[link] != nil {
		return
	}
	if r.pending == nil {
		r.pending = map[string]chan struct{}{}
	}
	r.pending[link] = make(chan struct{})
	r.queue = append(r.queue, link)
	if len(r.pending) == 1 {
		logger := klog.FromContext(ctx)
		r.running.Go(func() { r.run(logger) })
	}
}

// wait returns once the link, which is about to be made anew, is not to be deleted any more.
func (r *reaper) wait(ctx context.Context, link string) error {
	r.mu.Lock()
	done := r.pending[link]
	r.mu.Unlock()
	if done == nil {
		return nil
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting until link %s of an earlier attempt is gone: %w", link, ctx.Err())
	}
}

func (r *reaper) run(logger klog.Logger) {
	host, err := newRTNL()
	if err == nil {
		defer host.close()
	}
	for {
		r.mu.Lock()
		if r.closed {
			r.queue = nil
		}
		if len(r.queue) == 0 {
			r.mu.Unlock()
			return
		}
		links := r.queue
		r.queue = nil
		r.mu.Unlock()
		failed := err
		if failed == nil {
			failed = deleteLinks(host, links, r.group)
		}
		if failed != nil {
			logger.Error(failed, "Left links behind until the next start", "links", links)
		}
		r.mu.Lock()
		for _, link := range links {
			close(r.pending[link])
			delete(r.pending, link)
		}
		last := len(r.pending) == 0
		r.mu.Unlock()
		if last {
			return
		}
	}
}

// close ends the work after the links that are being deleted.
func (r *reaper) close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.running.Wait()
}

// deleteLinks deletes links within the grace periods of one, as a group, which is the way of the kernel to name many.
// Absent ones are no error.
func deleteLinks(c *rtnl, names []string, group uint32) error {
	var failed []error
	for some := range slices.Chunk(names, 64) { // the socket has room for some hundred answers
		var reqs []*nl.NetlinkRequest
		for _, name := range some {
			reqs = append(reqs, request(unix.RTM_NEWLINK, 0, ifinfo(0, false), str(unix.IFLA_IFNAME, name), u32(unix.IFLA_GROUP, group)))
		}
		errs, err := c.do(append(reqs, request(unix.RTM_DELLINK, 0, ifinfo(0, false), u32(unix.IFLA_GROUP, group)))...)
		if err != nil {
			return err
		}
		for _, err := range errs {
			failed = append(failed, unlessAbsent(err))
		}
	}
	return errors.Join(failed...)
}
