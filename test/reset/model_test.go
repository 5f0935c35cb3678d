package reset

import (
	"fmt"
	"slices"
	"sync"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// state of an object, as its client knows it.
type state string

const (
	gone    state = "gone"
	there   state = "there" // of pods and images
	created state = "created"
	running state = "running"
	ended   state = "ended" // seen exited, with the code of its script
	stopped state = "stopped"
	found   state = "found" // exited, with the code that it had after a reset
)

// object is a pod, a container or an image: all that a reset may bring back.
type object struct {
	past    []state // what the disk may say, the newest last
	pending bool    // the newest has been asked for and not been answered
}

// now is what was answered last.
func (o *object) now() state { return o.past[o.known()] }

func (o *object) known() int {
	if o.pending {
		return len(o.past) - 2
	}
	return len(o.past) - 1
}

func (o *object) may(s state) bool { return slices.Contains(o.past, s) }

// model is what is known outside of the machine.
type model struct {
	mu     sync.Mutex
	pods   []*pod
	images [imageCount]*object
}

// pod is one life of a pod.
type pod struct {
	object
	config  *runtimeapi.PodSandboxConfig
	handler string
	id      string // empty until answered
	ctrs    []*container
}

type container struct {
	object
	name string
	id   string // empty until answered
	code int32  // of its script's end; it has none if this is negative

	found int32
}

// ask notes what is being asked for.
func (m *model) ask(to state, objects ...*object) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, o := range objects {
		o.past, o.pending = append(o.past, to), true
	}
}

// answered notes that it was granted. What is durable is on the disk by then.
func (m *model) answered(durable bool, objects ...*object) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, o := range objects {
		o.pending = false
		if durable {
			o.past = o.past[len(o.past)-1:]
		}
	}
}

// is is an object's state while others change theirs.
func (m *model) is(o *object) state {
	m.mu.Lock()
	defer m.mu.Unlock()
	return o.now()
}

// saw notes what the object is, on the disk too.
func (o *object) saw(s state) { o.past, o.pending = []state{s}, false }

func (m *model) objects() (all []*object) {
	for _, p := range m.pods {
		all = append(all, &p.object)
		for _, c := range p.ctrs {
			all = append(all, &c.object)
		}
	}
	return all
}

// synced runs sync, after which the disk has what had been answered before; it forgets the pods that are no more.
func (m *model) synced(sync func() error) error {
	m.mu.Lock()
	before := map[*object]int{}
	for _, o := range m.objects() {
		before[o] = o.known()
	}
	m.mu.Unlock()
	if err := sync(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for o, known := range before {
		o.past = o.past[known:]
	}
	m.pods = slices.DeleteFunc(m.pods, func(p *pod) bool { return len(p.past) == 1 && p.now() == gone })
	return nil
}

// allows tells what is wrong with a container's status after a reset, by what it may have been before.
func (c *container) allows(s *runtimeapi.ContainerStatus) error {
	if s.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED || s.GetReason() == "" || s.GetFinishedAt() == 0 {
		return fmt.Errorf("it is %v, reason %q, finished at %d", s.GetState(), s.GetReason(), s.GetFinishedAt())
	}
	code := s.GetExitCode()
	byItself := c.code >= 0 && code == c.code
	for _, was := range c.past {
		switch {
		case was == created && code != 0 && s.GetMessage() != "",
			was == running && (byItself || code == 255 && s.GetReason() == "Unknown"),
			was == ended && byItself,
			was == stopped && (byItself || code == 137),
			was == found && code == c.found:
			return nil
		}
	}
	return fmt.Errorf("its exit code is %d, reason %q, %q; its script's is %d, and it was %v", code, s.GetReason(), s.GetMessage(), c.code, c.past)
}
