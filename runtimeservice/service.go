package runtimeservice

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/cni"
	"github.com/gantry-cri/gantry/imageservice"
	"github.com/gantry-cri/gantry/runtimeservice/ocispec"
	"github.com/gantry-cri/gantry/runtimeservice/store"
	"github.com/gantry-cri/gantry/sandbox"
	"github.com/gantry-cri/gantry/sandbox/cgroup"
)

// Config is the plain values of a Service.
type Config struct {
	Root           string // state directory; pods/, containers/ and quarantine/ lie in it
	Version        string // of this build, as Version reports it
	Handlers       []Handler
	DefaultHandler string // name of one of Handlers
	SystemdCgroup  bool
	SeccompRoot    string // where relative localhost profiles lie
	ShmSize        int64  // bytes; 0 = sandbox.DefaultShmSize
	CDISpecDirs    []string
	// DeviceOwnership gives devices to the run_as_user and run_as_group of the container.
	DeviceOwnership bool
	// SELinux gives containers labels. The caller has seen that selinux.Check has no objection.
	SELinux       bool
	MaxCheckpoint int64 // bytes of a checkpoint; 0 = none is made
	Streaming     Streaming
}

// Streaming gives out the URLs at which a client has what it asks for; then
// comes [Service.ExecSession], [Service.AttachSession] or [Service.ForwardPort].
type Streaming interface {
	Exec(*runtimeapi.ExecRequest) (url string, err error)
	Attach(*runtimeapi.AttachRequest) (url string, err error)
	PortForward(*runtimeapi.PortForwardRequest) (url string, err error)
}

// Handler is a runtime handler: a name of the configuration and the OCI runtime behind it.
type Handler struct {
	Name, Path string
	Root       string   // its state directory; "" = sandbox's default
	Options    []string // further global options of its command line

	// Annotations is the allow-list that [ocispec.NewAnnotationFilter] takes.
	Annotations []string

	PrivilegedWithoutHostDevices bool // privileged containers get the devices of others
	CgroupWritable               bool // /sys/fs/cgroup is writable in unprivileged containers, on version 2

	Features sandbox.Features // as probed at start
	Err      error            `json:"-"` // why it cannot run pods; nil if it can

	filter ocispec.AnnotationFilter
}

// Service is the RuntimeService. [Open] makes it; its methods are the RPCs.
type Service struct {
	*pods
	*containers
	*exec
	*streaming
	*stats
	*node
	unbuilt

	core  *core
	stop  context.CancelFunc
	tasks sync.WaitGroup
}

// unbuilt answers Unimplemented for the RPCs that no group has. It stands one
// embedding deeper than the groups, so that theirs are preferred.
type unbuilt struct {
	runtimeapi.UnimplementedRuntimeServiceServer
}

// core is what the groups of RPCs share.
type core struct {
	cfg      Config
	bootID   string
	index    *index
	feed     *feed
	podStore *store.Dir[store.Pod]
	ctrStore *store.Dir[store.Container]
	host     *sandbox.Host
	images   *imageservice.Service
	networks *cni.Networks
	node     ocispec.Node

	// cgroupsMu makes one of finding out which cgroups of a pod are missing and
	// making them, and of removing them and handing them on. Taken before index.mu and pod.mu.
	cgroupsMu sync.Mutex
}

// Open reads the records, finishes or undoes what was under way when the
// daemon ended, and begins to follow the exits of containers. The service
// does not own host, images and networks. Call Close before they are closed.
func Open(ctx context.Context, cfg Config, host *sandbox.Host, images *imageservice.Service, networks *cni.Networks) (*Service, error) {
	if cfg.ShmSize == 0 {
		cfg.ShmSize = sandbox.DefaultShmSize
	}
	bootID, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("reading the boot id: %w", err)
	}
	version2 := host.CgroupVersion() == cgroup.V2
	for i, h := range cfg.Handlers {
		if h.CgroupWritable && !version2 && h.Err == nil {
			cfg.Handlers[i].Err = fmt.Errorf("runtimes.%s.cgroup_writable needs cgroup version 2, and this node has version 1: %w", h.Name, errdefs.ErrFailedPrecondition)
		}
		if cfg.Handlers[i].filter, err = ocispec.NewAnnotationFilter(h.Annotations, h.Features.UnsafeAnnotations); err != nil {
			cfg.Handlers[i].Err = errors.Join(h.Err, fmt.Errorf("runtimes.%s.annotations: %w", h.Name, err))
		}
	}
	c := &core{cfg: cfg, bootID: strings.TrimSpace(string(bootID)), index: newIndex(), feed: newFeed(), host: host, images: images, networks: networks}
	if c.node, err = nodeFacts(ctx, cfg, host); err != nil {
		return nil, err
	}
	if c.podStore, err = store.Open[store.Pod](cfg.Root, "pods"); err != nil {
		return nil, err
	}
	if c.ctrStore, err = store.Open[store.Container](cfg.Root, "containers"); err != nil {
		return nil, err
	}
	s := &Service{
		pods: &pods{c}, containers: &containers{c}, exec: &exec{c}, streaming: &streaming{c}, stats: &stats{c}, node: &node{core: c},
		core: c,
	}
	if err := c.takeOver(ctx); err != nil {
		return nil, fmt.Errorf("taking over the state of the last run: %w", err)
	}
	following, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	s.tasks.Go(func() { c.followExits(following) })
	s.tasks.Go(func() { c.podStore.KeepSpare(following) })
	s.tasks.Go(func() { c.ctrStore.KeepSpare(following) })
	c.settle(following, &s.tasks)
	return s, nil
}

// Close ends the following of exits and closes what the stats keep open. RPCs must have ended.
func (s *Service) Close() error {
	s.stop()
	s.tasks.Wait()
	var errs []error
	for _, c := range s.core.index.allContainers(nil) {
		errs = append(errs, c.meter.close())
	}
	for _, p := range s.core.index.allPods() {
		errs = append(errs, p.meter.close())
	}
	return errors.Join(errs...)
}

// handler returns a handler by the name of a request: "" is the default one.
func (c *core) handler(name string) (Handler, error) {
	if name == "" {
		name = c.cfg.DefaultHandler
	}
	i := slices.IndexFunc(c.cfg.Handlers, func(h Handler) bool { return h.Name == name })
	if i < 0 {
		var known []string
		for _, h := range c.cfg.Handlers {
			known = append(known, h.Name)
		}
		return Handler{}, fmt.Errorf("runtime handler %q is not configured (there are: %s): %w", name, strings.Join(known, ", "), errdefs.ErrInvalidArgument)
	}
	h := c.cfg.Handlers[i]
	if h.Err != nil {
		return Handler{}, fmt.Errorf("runtime handler %q cannot run pods, install its runtime or change its path and restart gantry: %w: %w", name, h.Err, errdefs.ErrFailedPrecondition)
	}
	return h, nil
}

func (c *core) runtime(h Handler) sandbox.Runtime {
	return sandbox.Runtime{Handler: h.Name, Path: h.Path, Root: h.Root, Options: h.Options, Systemd: c.cfg.SystemdCgroup}
}

// newID draws the id of a pod or container: 32 random bytes in hexadecimal.
func newID() string {
	var b [idLength / 2]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// partMissing changes the kind of an error that says NotFound of some part: an
// image, a plugin's binary. To the kubelet NotFound means that the pod or the
// container of the request is gone; it would take a stop that has failed for done.
func partMissing(err error) error {
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("%v: %w", err, errdefs.ErrFailedPrecondition)
	}
	return err
}

// refusal says that an object's state does not allow an operation.
func refusal(kind, id string, err error) error {
	return fmt.Errorf("%s %s: %w: %w", kind, id, err, errdefs.ErrFailedPrecondition)
}
