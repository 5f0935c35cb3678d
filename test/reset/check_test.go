package reset

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// check compares what the daemon has made of the disk with what is known, brings all to its end, and uses the node.
func (n *node) check(random *rand.Rand) {
	n.t.Helper()
	n.checkImages()
	n.checkPods()
	n.checkContainers()
	n.tellAside()
	s := n.calm()
	var lost []*pod
	for _, p := range n.pods {
		if p.now() == there {
			lost = append(lost, p)
		}
	}
	if len(lost) > 0 { // beside the lost one, as the kubelet does
		n.runAgain(lost[random.IntN(len(lost))], 1, random)
	}
	for _, p := range slices.Clone(n.pods) {
		if p.now() == there && !s.removePod(p) {
			return
		}
	}
	n.checkNothing()
	n.rest()
	for i := range podWorkers { // and in its place
		if at := slices.IndexFunc(lost, func(p *pod) bool { return p.worker() == i }); at >= 0 {
			n.runAgain(lost[at], 0, random)
		}
	}
	n.same()
}

// runAgain runs the same pod, from an image that is there.
func (n *node) runAgain(p *pod, more uint32, random *rand.Rand) {
	n.t.Helper()
	image := random.IntN(imageCount)
	if n.images[image].now() != there {
		image = 0
	}
	config := proto.CloneOf(p.config)
	config.Metadata.Attempt += more
	n.use(config, image, random)
}

// checkImages requires of images what doc.go says.
func (n *node) checkImages() {
	n.t.Helper()
	need := map[string]string{}
	for i, o := range n.images {
		is := gone
		if n.keysOf(i) != nil {
			is = there
			for _, key := range n.keys[i] {
				need[key] = n.layers[key]
			}
		}
		if !o.may(is) {
			n.t.Errorf("image %d is %s, and was %v", i, is, o.past)
		}
		o.saw(is)
	}
	n.eventually("there are the layers of images, and no others", func() error {
		if is := n.readLayers(); !maps.Equal(is, need) {
			return fmt.Errorf("they are\n%v\nand the images'\n%v", is, need)
		}
		if left := n.lines("ls -A /node/root/images/tmp /node/root/images/trash | grep -v :"); len(left) > 0 {
			return fmt.Errorf("left over: %s", left)
		}
		return nil
	})
}

// keysOf are the layers of an image, nil if it is not there.
func (n *node) keysOf(i int) []string {
	n.t.Helper()
	var resp *runtimeapi.ImageStatusResponse
	must(n.t, n.request(func(ctx context.Context) (err error) {
		resp, err = n.Image.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: n.registry.name(i)}, Verbose: true})
		return err
	}))
	if resp.GetImage() == nil {
		return nil
	}
	var info struct{ Layers []string }
	must(n.t, json.Unmarshal([]byte(resp.GetInfo()["info"]), &info))
	if len(info.Layers) == 0 {
		n.t.Fatalf("no layers in the status: %s", resp.GetInfo()["info"])
	}
	return info.Layers
}

// checkPods requires that each pod was asked for, is there once, and is not ready.
func (n *node) checkPods() {
	n.t.Helper()
	var resp *runtimeapi.ListPodSandboxResponse
	must(n.t, n.request(func(ctx context.Context) (err error) {
		resp, err = n.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
		return err
	}))
	seen := map[*pod]bool{}
	for _, s := range resp.GetItems() {
		i := slices.IndexFunc(n.pods, func(p *pod) bool {
			return p.id == s.GetId() || p.id == "" && p.config.GetMetadata().String() == s.GetMetadata().String()
		})
		if i < 0 || seen[n.pods[i]] {
			n.t.Errorf("nobody asked for pod %v", s)
			continue
		}
		p := n.pods[i]
		seen[p], p.id = true, s.GetId()
		if s.GetState() != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
			n.t.Errorf("pod %s is %v", p, s.GetState())
		}
	}
	for _, p := range n.pods {
		is := gone
		if seen[p] {
			is = there
		}
		if !p.may(is) {
			n.t.Errorf("pod %s is %s, and was %v", p, is, p.past)
		}
		p.saw(is)
	}
}

// checkContainers requires that each container was asked for, and has ended as it can have.
func (n *node) checkContainers() {
	n.t.Helper()
	var resp *runtimeapi.ListContainersResponse
	must(n.t, n.request(func(ctx context.Context) (err error) {
		resp, err = n.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
		return err
	}))
	listed := map[string]*runtimeapi.Container{} // pod/name
	for _, c := range resp.GetContainers() {
		name := c.GetPodSandboxId() + "/" + c.GetMetadata().GetName()
		if listed[name] != nil {
			n.t.Errorf("container %s is there twice", name)
		}
		listed[name] = c
	}
	for _, p := range n.pods {
		for _, c := range p.ctrs {
			n.checkContainer(p, c, listed[p.id+"/"+c.name])
			delete(listed, p.id+"/"+c.name)
		}
	}
	if len(listed) > 0 {
		n.t.Errorf("nobody asked for containers %v", listed)
	}
}

func (n *node) checkContainer(p *pod, c *container, listed *runtimeapi.Container) {
	n.t.Helper()
	if listed == nil {
		if !c.may(gone) && p.now() == there {
			n.t.Errorf("container %s of pod %s is gone, and was %v", c.name, p, c.past)
		}
		c.saw(gone)
		return
	}
	if c.id != "" && c.id != listed.GetId() {
		n.t.Errorf("container %s of pod %s was %s and is %s", c.name, p, c.id, listed.GetId())
	}
	c.id = listed.GetId()
	if len(c.past) == 1 && c.past[0] == gone {
		n.t.Errorf("container %s of pod %s is there again", c.name, p)
	}
	must(n.t, n.request(func(ctx context.Context) error {
		resp, err := n.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.id})
		if err != nil {
			return err
		}
		if wrong := c.allows(resp.GetStatus()); wrong != nil {
			n.t.Errorf("container %s of pod %s: %v", c.name, p, wrong)
		}
		c.saw(found)
		c.found = resp.GetStatus().GetExitCode()
		return nil
	}))
}

// tellAside counts what could not be read, and removes it, as somebody would who has looked at it.
func (n *node) tellAside() {
	n.t.Helper()
	for _, line := range n.lines(`cd /node/root && for f in $(find . -path '*quarantine/*' -o -name '*.damaged*'); do
	echo "$f $(stat -c %%s $f) bytes, without zeros $(tr -d '\0' <$f | wc -c)"; rm -f $f; done; rmdir quarantine 2>/dev/null; :`) {
		n.t.Logf("set aside: %s", line)
		n.aside++
		if strings.Contains(line, "meta.db") {
			n.t.Errorf("the metadata of images, which are flushed, were damaged: %s", line)
		}
	}
}

// checkNothing requires that no pod and no container is there.
func (n *node) checkNothing() {
	n.t.Helper()
	must(n.t, n.request(func(ctx context.Context) error {
		pods, err := n.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
		containers, cerr := n.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
		if len(pods.GetItems())+len(containers.GetContainers()) > 0 {
			n.t.Errorf("still there: %v, %v", pods.GetItems(), containers.GetContainers())
		}
		return errors.Join(err, cerr)
	}))
}
