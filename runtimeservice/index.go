package runtimeservice

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantry-cri/gantry/runtimeservice/lifecycle"
)

// index is the books: every pod and container by id, and the live ones by key.
type index struct {
	mu         sync.RWMutex
	pods       map[string]*pod // guarded by mu, as all below
	containers map[string]*container
	podKeys    map[podKey]*pod
	ctrKeys    map[containerKey]*container
	lastTime   int64
}

func newIndex() *index {
	return &index{
		pods: map[string]*pod{}, containers: map[string]*container{},
		podKeys: map[podKey]*pod{}, ctrKeys: map[containerKey]*container{},
	}
}

// now is the time in nanoseconds, later than any that it returned before: the
// kubelet takes the pod with the newest creation time for the current one,
// also after the clock was set back.
func (x *index) now() int64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.nowLocked()
}

func (x *index) nowLocked() int64 {
	x.lastTime = max(time.Now().UnixNano(), x.lastTime+1)
	return x.lastTime
}

// addPod enters p unless a pod with its key is there, which it then returns.
// A key that belongs to a stopped pod is taken over: keys are unique among live pods.
func (x *index) addPod(p *pod) (existing *pod) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if old := x.podKeys[p.key]; old != nil {
		return old
	}
	x.pods[p.id], x.podKeys[p.key] = p, p
	x.lastTime = max(x.lastTime, p.createdAt)
	return nil
}

func (x *index) addContainer(c *container) (existing *container) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if old := x.ctrKeys[c.key]; old != nil {
		return old
	}
	x.containers[c.id], x.ctrKeys[c.key] = c, c
	x.lastTime = max(x.lastTime, c.createdAt)
	return nil
}

// restorePod enters a pod of the last run. Several may have had its key, one
// after the other; it belongs to the one that is ready, or else that is being undone.
func (x *index) restorePod(p *pod) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.pods[p.id] = p
	if p.state == lifecycle.PodReady || p.state == lifecycle.PodCreating && x.podKeys[p.key] == nil {
		x.podKeys[p.key] = p
	}
	x.lastTime = max(x.lastTime, p.createdAt)
}

// restoreContainer enters a container of the last run, as restorePod does a pod.
func (x *index) restoreContainer(c *container) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.containers[c.id] = c
	switch c.state {
	case lifecycle.ContainerCreating:
		if x.ctrKeys[c.key] == nil {
			x.ctrKeys[c.key] = c
		}
	case lifecycle.ContainerCreated, lifecycle.ContainerStarting, lifecycle.ContainerRunning:
		x.ctrKeys[c.key] = c
	}
	x.lastTime = max(x.lastTime, c.createdAt)
}

// freePodKey lets a new pod take the key of p, which is no longer live.
func (x *index) freePodKey(p *pod) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.podKeys[p.key] == p {
		delete(x.podKeys, p.key)
	}
}

func (x *index) freeContainerKey(c *container) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.ctrKeys[c.key] == c {
		delete(x.ctrKeys, c.key)
	}
}

func (x *index) removePod(p *pod) {
	x.freePodKey(p)
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.pods, p.id)
}

func (x *index) removeContainer(c *container) {
	x.freeContainerKey(c)
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.containers, c.id)
}

// idLength is the length of a full id; the kubelet sends no other, crictl sends prefixes.
const idLength = 64

// find returns the object with this id or with this unique prefix of one.
func find[T any](m map[string]T, kind, id string) (T, error) {
	if v, ok := m[id]; ok {
		return v, nil
	}
	var found T
	n := 0
	if id != "" && len(id) < idLength {
		for full, v := range m {
			if strings.HasPrefix(full, id) {
				found = v
				n++
			}
		}
	}
	switch n {
	case 1:
		return found, nil
	case 0:
		return found, fmt.Errorf("%s %q: %w", kind, id, errdefs.ErrNotFound)
	}
	var none T
	return none, fmt.Errorf("%s id %q is the beginning of %d ids, give more of it: %w", kind, id, n, errdefs.ErrInvalidArgument)
}

// pod returns a pod by id or unique prefix: errdefs.ErrNotFound when there is none.
func (x *index) pod(id string) (*pod, error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return find(x.pods, "pod sandbox", id)
}

// container returns a container by id or unique prefix: errdefs.ErrNotFound when there is none.
func (x *index) container(id string) (*container, error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return find(x.containers, "container", id)
}

// allPods is every pod, oldest first, equal times by id.
func (x *index) allPods() []*pod {
	x.mu.RLock()
	all := make([]*pod, 0, len(x.pods))
	for _, p := range x.pods {
		all = append(all, p)
	}
	x.mu.RUnlock()
	slices.SortFunc(all, func(a, b *pod) int {
		return cmp.Or(cmp.Compare(a.createdAt, b.createdAt), strings.Compare(a.id, b.id))
	})
	return all
}

// allContainers is every container, of pod only if that is not nil, oldest first, equal times by id.
func (x *index) allContainers(of *pod) []*container {
	x.mu.RLock()
	var all []*container
	for _, c := range x.containers {
		if of == nil || c.pod == of {
			all = append(all, c)
		}
	}
	x.mu.RUnlock()
	slices.SortFunc(all, func(a, b *container) int {
		return cmp.Or(cmp.Compare(a.createdAt, b.createdAt), strings.Compare(a.id, b.id))
	})
	return all
}

// matchLabels reports whether labels has every pair of selector.
func matchLabels(labels, selector map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}
