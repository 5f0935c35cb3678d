package crash

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
	"github.com/gantry-cri/gantry/test/killpoint"
)

func TestMain(m *testing.M) {
	killpoint.Main()
	harness.Main(m)
}

// world is an instance with a pod that nobody touches.
type world struct {
	*harness.Instance
	t      testing.TB
	steady *subject
	audit  func() error // that nothing is there beside steady, and nothing of it is missing
	whole  []string     // its layers with the image that is pulled

	subnets string
}

var worlds int // made so far

func newWorld(t testing.TB) *world {
	t.Helper()
	killpoint.Require(t)
	worlds++
	w := &world{t: t, subnets: fmt.Sprintf("10.211.%d.0/24,fd00:211:%d::/64", worlds, worlds)}
	w.Instance = harness.New(t, harness.Config{Registry: harness.Registry(t), Subnets: w.subnets, TOML: "max_checkpoint = \"256MiB\"\n"})
	w.reap()
	w.pull(images.Busybox)
	w.steady = w.subject("steady", operation{})
	for _, c := range []*container{&w.steady.ctr, &w.steady.sibling} {
		c.config.Command = []string{"sh", "-c", "echo ready; exec sleep 100000"}
	}
	w.steady.bring(running)
	// The first life makes what then stays, such as lock files.
	first := w.subject("first", operation{pod: []podChange{hostPort, sharedPID}})
	first.bring(running)
	first.mustRemove()
	w.pull(pulled)
	w.whole = w.layers()
	w.must("removing the image", first.removePulled())
	w.eventually("the trash is empty", w.quiet)
	var err error
	if w.audit, err = w.AuditFromNow(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.steady.remove(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// reap collects, until the test ends, what has lost its supervisor, as a node's init does: a PID namespace ends when all
// in it have been waited for.
func (w *world) reap() {
	end := make(chan bool)
	var reaping sync.WaitGroup
	reaping.Go(func() {
		for {
			select {
			case <-end:
				return
			case <-time.After(20 * time.Millisecond):
				harness.Reap()
			}
		}
	})
	w.t.Cleanup(func() {
		close(end)
		reaping.Wait()
	})
}

// context bounds a single request, clean-up included; no test needs as long for one.
func (w *world) context() context.Context {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.t.Context()), time.Minute)
	w.t.Cleanup(cancel)
	return ctx
}

func (w *world) must(what string, err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatalf("%s: %v", what, err)
	}
}

func (w *world) eventually(what string, condition func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(time.Minute); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("waited in vain until %s", what)
		}
	}
}

func (w *world) pull(image string) {
	w.t.Helper()
	_, err := w.Image.PullImage(w.context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: image}})
	w.must("pulling "+image, err)
}

// quiet reports whether nothing is being written or deleted.
func (w *world) quiet() bool {
	w.t.Helper()
	entries, err := w.ImageStore()
	w.must("listing the image store", err)
	return !slices.ContainsFunc(entries, func(e string) bool { return strings.HasPrefix(e, "/tmp/") || strings.HasPrefix(e, "/trash/") })
}

// layers are all files of layers with what is in them.
func (w *world) layers() (list []string) {
	w.t.Helper()
	root := filepath.Join(w.Dir, "root/images")
	err := filepath.WalkDir(filepath.Join(root, "layers"), func(path string, e os.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil // deleted meanwhile
		}
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		line := fmt.Sprintf("%s %s", strings.TrimPrefix(path, root), info.Mode())
		if info.Mode().IsRegular() {
			body, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %x", sha256.Sum256(body))
		}
		list = append(list, line)
		return nil
	})
	w.must("listing the image store", err)
	return list
}

// rest requires that the world is as it was when there was nothing but the pod that nobody touches.
func (w *world) rest() {
	w.t.Helper()
	w.steady.unchanged()
	pods, err := w.Runtime.ListPodSandbox(w.context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil || len(pods.GetItems()) != 1 {
		w.t.Errorf("pods: %v, %v", pods.GetItems(), err)
	}
	containers, err := w.Runtime.ListContainers(w.context(), &runtimeapi.ListContainersRequest{})
	if err != nil || len(containers.GetContainers()) != 2 {
		w.t.Errorf("containers: %v, %v", containers.GetContainers(), err)
	}
	list, err := w.Image.ListImages(w.context(), &runtimeapi.ListImagesRequest{})
	if err != nil || len(list.GetImages()) != 1 {
		w.t.Errorf("images: %v, %v", list.GetImages(), err)
	}
	if err := w.audit(); err != nil {
		w.t.Error(err)
	}
}

// container is one of a subject.
type container struct {
	config *runtimeapi.ContainerConfig
	id     string
	pid    int
}

// subject is a pod with two containers: ctr, which operations are about, and sibling, which ends while no daemon is there.
type subject struct {
	*world
	config       *runtimeapi.PodSandboxConfig
	id           string
	ctr, sibling container
	addresses    int  // that the pod has
	unknown      bool // a supervisor has died, and exit codes with it
}

// Exit codes of the script.
const (
	exitTerm = 3 // asked to stop
	exitTold = 7 // told by tell
)

// script says "ready" when it answers to signals, and "again" when it is told to. A signal that comes just before the
// shell waits is answered when it has waited.
const script = `trap 'exit 3' TERM; trap 'exit 7' USR1; trap 'echo again' USR2; echo ready; while :; do sleep 1 & wait $!; done`

// subject is one as the operation wants it, of which nothing is there yet.
func (w *world) subject(name string, o operation) *subject {
	w.t.Helper()
	logs := filepath.Join(w.LogDir, name)
	w.must("removing the last subject's logs", os.RemoveAll(logs)) // which says "ready"
	namespaces := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}
	s := &subject{world: w, config: &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Uid: "uid-" + name, Namespace: "crash", Attempt: 1},
		Hostname: name, LogDirectory: logs, Labels: map[string]string{"app": name},
		Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: "/kubepods/pod-" + name,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: namespaces}},
	}}
	for _, f := range o.pod {
		f(s.config)
	}
	if s.config.Linux.SecurityContext.NamespaceOptions.Network == runtimeapi.NamespaceMode_POD {
		s.addresses = 2
	}
	for name, c := range map[string]*container{"ctr": &s.ctr, "sibling": &s.sibling} {
		c.config = &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: images.Busybox},
			Command: []string{"sh", "-c", script}, LogPath: name + ".log", Labels: s.config.Labels,
			Linux: &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{CpuShares: 256},
				SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: namespaces}},
		}
	}
	if o.container != nil {
		o.container(s.ctr.config)
	}
	return s
}

// stage is how far a subject has come.
type stage int

const (
	nothing stage = iota
	ready         // the pod is, with a sibling that runs
	created       // so is ctr
	running
)

func (s *subject) bring(to stage) {
	s.t.Helper()
	if to >= ready {
		s.must("running the pod", s.runPod())
		s.must("creating the sibling", s.create(&s.sibling))
		s.must("starting the sibling", s.start(&s.sibling))
		s.settle(&s.sibling)
	}
	if to >= created {
		s.must("creating the container", s.create(&s.ctr))
	}
	if to >= running {
		s.must("starting the container", s.start(&s.ctr))
		s.settle(&s.ctr)
	}
}

func (s *subject) runPod() error {
	resp, err := s.Runtime.RunPodSandbox(s.context(), &runtimeapi.RunPodSandboxRequest{Config: s.config})
	if err == nil {
		s.id = resp.GetPodSandboxId()
	}
	return err
}

func (s *subject) stopPod() error {
	_, err := s.Runtime.StopPodSandbox(s.context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: s.id})
	return err
}

func (s *subject) removePod() error {
	_, err := s.Runtime.RemovePodSandbox(s.context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.id})
	return err
}

// remove is what the kubelet does with a pod that it has done with.
func (s *subject) remove() error {
	if s.id == "" {
		return nil
	}
	if err := s.stopPod(); err != nil {
		return err
	}
	return s.removePod()
}

func (s *subject) mustRemove() {
	s.t.Helper()
	s.must("removing the pod", s.remove())
}

func (s *subject) create(c *container) error {
	resp, err := s.Runtime.CreateContainer(s.context(), &runtimeapi.CreateContainerRequest{PodSandboxId: s.id, Config: c.config, SandboxConfig: s.config})
	if err == nil {
		c.id = resp.GetContainerId()
	}
	return err
}

func (s *subject) start(c *container) error {
	_, err := s.Runtime.StartContainer(s.context(), &runtimeapi.StartContainerRequest{ContainerId: c.id})
	return err
}

func (s *subject) log(c *container) string {
	return filepath.Join(s.config.LogDirectory, c.config.LogPath)
}

// settle waits until the container's script answers to signals, and learns its process.
func (s *subject) settle(c *container) {
	s.t.Helper()
	s.waitLine(c, "ready")
	_, c.pid = s.status(c)
}

// waitLine waits until the container's log ends with a line.
func (s *subject) waitLine(c *container, text string) {
	s.t.Helper()
	s.eventually("the log ends with "+text, func() bool {
		body, err := os.ReadFile(s.log(c))
		return err == nil && strings.HasSuffix(strings.TrimSuffix(strings.TrimSuffix(string(body), "\n"), "\r"), " stdout F "+text)
	})
}

// status is nil when there is no such container.
func (s *subject) status(c *container) (*runtimeapi.ContainerStatus, int) {
	s.t.Helper()
	if c.id == "" {
		return nil, 0
	}
	list := func() []*runtimeapi.Container {
		resp, err := s.Runtime.ListContainers(s.context(), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{Id: c.id}})
		s.must("listing containers", err)
		return resp.GetContainers()
	}
	before := list()
	if len(before) == 0 {
		return nil, 0
	}
	resp, err := s.Runtime.ContainerStatus(s.context(), &runtimeapi.ContainerStatusRequest{ContainerId: c.id, Verbose: true})
	s.must("the container's status", err)
	pid, err := harness.Pid(resp)
	s.must("reading the container's info", err)
	state := resp.GetStatus().GetState()
	if after := list(); before[0].GetState() != state && (len(after) == 0 || after[0].GetState() != state) { // it may end in between
		s.t.Errorf("the list says %v, the status %v, the list %v", before, state, after)
	}
	return resp.GetStatus(), pid
}
