package runtimeservice

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/runtimeservice/lifecycle"
	"github.com/gantry-cri/gantry/runtimeservice/ocispec"
	"github.com/gantry-cri/gantry/runtimeservice/store"
	"github.com/gantry-cri/gantry/sandbox"
	"github.com/gantry-cri/gantry/sandbox/selinux"
)

// opLock is a lock that is taken with a context.
type opLock chan struct{}

func newOpLock() opLock { return make(opLock, 1) }

// lock waits for the lock until ctx ends, whose error it then returns.
func (l opLock) lock(ctx context.Context) error {
	select {
	case l <- struct{}{}:
		return nil
	default:
	}
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (l opLock) unlock() { <-l }

// podKey is what makes a pod the same in a retried RunPodSandbox.
type podKey struct {
	name, namespace, uid string
	attempt              uint32
}

// pod is one pod sandbox, from the moment its id is drawn until it is removed.
type pod struct {
	id         string
	key        podKey
	handler    string // as requested
	runtime    string // name of the handler that was taken
	config     *runtimeapi.PodSandboxConfig
	configJSON []byte // config as it stands in the record
	own        sandbox.Namespaces
	userns     *ocispec.UserNS // nil = the host's
	createdAt  int64
	bootID     string
	feed       *feed

	op opLock // see doc.go
	// made is closed when RunPodSandbox has ended, well or not.
	made chan struct{}

	meter meter // of its cgroup, if it has one to itself; closed when it stops

	// recordMu orders the writes of the record, which another pod's removal may
	// cause too; gone means that it was deleted.
	recordMu sync.Mutex
	gone     bool // guarded by recordMu

	mu      sync.Mutex
	state   lifecycle.Pod // guarded by mu, as all below
	ips     []netip.Addr
	labels  selinux.Labels                               // reserved until the record is deleted; empty without SELinux
	cgroups []string                                     // made for this pod, shallowest first; changed under core.cgroupsMu only
	sized   *runtimeapi.UpdatePodSandboxResourcesRequest // what the last one has made it; nil without
	// left is closed when the pod leaves PodReady; made when somebody first waits for that.
	left chan struct{}
	// cgroupsGone: the pod's turn to remove cgroups has passed, it inherits none.
	cgroupsGone bool
}

func (p *pod) snapshot() store.Pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	return store.Pod{
		State: p.state, BootID: p.bootID, CreatedAt: p.createdAt, Handler: p.handler, Runtime: p.runtime, Config: p.configJSON,
		IPs: slices.Clone(p.ips), Cgroups: slices.Clone(p.cgroups), Sized: encodeSized(p.sized),
		ProcessLabel: p.labels.Process, MountLabel: p.labels.Mount,
	}
}

func (p *pod) getState() lifecycle.Pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state
}

// mustBeReady refuses what only a ready pod can have.
func (p *pod) mustBeReady() error {
	if state := p.getState(); state != lifecycle.PodReady {
		return fmt.Errorf("pod %s is %v, containers need a ready one: %w", p.id, state, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// whileReady is closed when the pod, which must be ready, is so no longer.
func (p *pod) whileReady() (<-chan struct{}, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state != lifecycle.PodReady {
		return nil, fmt.Errorf("pod %s/%s (%s) is %v, not ready: %w", p.key.namespace, p.key.name, p.id, p.state, errdefs.ErrFailedPrecondition)
	}
	if p.left == nil {
		p.left = make(chan struct{})
	}
	return p.left, nil
}

// set gives the pod a state and tells of what the CRI shows of that.
func (p *pod) set(next lifecycle.Pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state == lifecycle.PodReady && next != lifecycle.PodReady && p.left != nil { // which it never becomes again
		close(p.left)
	}
	before, was := shownPod(p.state)
	after, is := shownPod(next)
	p.state = next
	switch {
	case was && !is:
		p.feed.tell(p, p.id, eventDeleted)
	case !is || was && before == after:
	case after == runtimeapi.PodSandboxState_SANDBOX_READY:
		p.feed.tell(p, p.id, eventCreated, eventStarted)
	default:
		p.feed.tell(p, p.id, eventStopped)
	}
}

// containerKey is what makes a container the same in a retried CreateContainer.
type containerKey struct {
	pod, name string
	attempt   uint32
}

// container is one container, from the moment its id is drawn until it is removed.
type container struct {
	id         string
	key        containerKey
	pod        *pod
	createdAt  int64
	bootID     string
	imageID    string
	imageRef   string // repo digest, or the id of an image without one
	imageName  string // what people call the image
	cgroup     string
	stopSignal int
	user       user
	runtime    sandbox.Runtime // what it is started with

	op     opLock        // see doc.go
	made   chan struct{} // closed when CreateContainer has ended, well or not
	exited chan struct{} // closed when the state becomes Exited

	meter meter // of its cgroup, closed at its exit

	// recordMu orders the writes of the record; gone means that it was deleted.
	recordMu sync.Mutex
	gone     bool // guarded by recordMu

	mu         sync.Mutex
	state      lifecycle.Container // guarded by mu, as all below
	config     *runtimeapi.ContainerConfig
	configJSON []byte
	startedAt  int64
	finishedAt int64
	exitCode   int32
	reason     string
	message    string
	pid        int
	// early is an exit that was told before StartContainer had heard that the process runs.
	early   *sandbox.Exit
	process *specs.Process // of the spec, read when first needed
	stopped bool           // the stop signal was sent: once is enough
}

// user is the identity that a container's first process starts with.
type user struct {
	uid, gid uint32
	groups   []uint32
}

func (c *container) snapshot() store.Container {
	runtime := store.Runtime(c.runtime)
	c.mu.Lock()
	defer c.mu.Unlock()
	return store.Container{
		State: c.state, BootID: c.bootID, Pod: c.key.pod, CreatedAt: c.createdAt, StartedAt: c.startedAt, FinishedAt: c.finishedAt,
		ExitCode: c.exitCode, Reason: c.reason, Message: c.message, Config: c.configJSON, ImageID: c.imageID, ImageRef: c.imageRef,
		ImageName: c.imageName, Cgroup: c.cgroup, StopSignal: c.stopSignal, UID: c.user.uid, GID: c.user.gid, Groups: c.user.groups,
		Runtime: &runtime,
	}
}

func (c *container) getState() lifecycle.Container {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

// getConfig is the container's config as it is now; nobody changes the message itself.
func (c *container) getConfig() *runtimeapi.ContainerConfig {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.config
}

func (c *container) on(e lifecycle.ContainerEvent) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.onLocked(e)
}

func (c *container) onLocked(e lifecycle.ContainerEvent) error {
	next, err := c.state.On(e)
	if err != nil {
		return refusal("container", c.id, err)
	}
	c.setLocked(next)
	return nil
}

// end makes the container one that is not in the books any more.
func (c *container) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.setLocked(lifecycle.ContainerGone)
}

// setLocked gives the container a state and tells of what the CRI shows of
// that. c.mu is held; who changes more than the state does so under the same
// lock, for the event is made when it is free.
func (c *container) setLocked(next lifecycle.Container) {
	if next == lifecycle.ContainerExited && c.state != lifecycle.ContainerExited {
		close(c.exited)
	}
	before, was := shownContainer(c.state)
	after, is := shownContainer(next)
	c.state = next
	switch {
	case was && !is:
		c.pod.feed.tell(c.pod, c.id, eventDeleted)
	case !is || was && before == after:
	case after == runtimeapi.ContainerState_CONTAINER_CREATED:
		c.pod.feed.tell(c.pod, c.id, eventCreated)
	case after == runtimeapi.ContainerState_CONTAINER_RUNNING:
		c.pod.feed.tell(c.pod, c.id, eventStarted)
	default:
		c.pod.feed.tell(c.pod, c.id, eventStopped)
	}
}
