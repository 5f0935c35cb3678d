package reset

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// node is a machine and what is known of it outside.
type node struct {
	*machine
	model
	kind     string
	registry *registry
	keys     [imageCount][]string // layers of each image
	layers   map[string]string    // layer → what it must be
	idle     map[string]bool      // what the machine has without a pod
	made     int                  // pods, for their names
	aside    int                  // files in quarantine so far
}

// request bounds a single request, clean-up included; none needs as long.
func (n *node) request(do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(n.t.Context(), patience)
	defer cancel()
	return do(ctx)
}

// mount gives the machine its disk, and what a node's configuration has. Some disks are written out early.
func (n *node) mount(random *rand.Rand) {
	n.t.Helper()
	options, early := "noatime", random.IntN(2) == 0
	if early && n.kind == "ext4" {
		options += ",commit=1"
	}
	n.sh(`set -e
modprobe -a virtio_blk %s
mkdir -p /node /tmp/net.d /tmp/certs.d/%s
mount -t %s -o %s /dev/vda /node
mkdir -p /node/root /node/logs
echo 'server = "http://%[2]s"' >/tmp/certs.d/%[2]s/hosts.toml`, n.kind, n.registry.host(), n.kind, options)
	if early {
		n.sh("sysctl -qw vm.dirty_expire_centisecs=50 vm.dirty_writeback_centisecs=20")
	}
}

// podConfig is of a new pod of a client's; with its host port if no other has it.
func (n *node) podConfig(worker int, port bool) *runtimeapi.PodSandboxConfig {
	n.mu.Lock()
	n.made++
	made := n.made
	n.mu.Unlock()
	name := fmt.Sprintf("pod-%d-%d", worker, made)
	config := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Uid: "uid-" + name, Namespace: "reset"},
		Hostname: name, LogDirectory: "/node/logs/" + name,
		Labels: map[string]string{"worker": strconv.Itoa(worker)},
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}}},
	}
	if made%3 == 0 {
		config.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	}
	if port {
		config.PortMappings = []*runtimeapi.PortMapping{{HostPort: 8000 + int32(worker), ContainerPort: 80}}
	}
	return config
}

func (p *pod) worker() int {
	i, _ := strconv.Atoi(p.config.GetLabels()["worker"]) // podConfig made it
	return i
}

func (p *pod) String() string {
	return fmt.Sprintf("%s attempt %d (%.13s)", p.config.GetMetadata().GetName(), p.config.GetMetadata().GetAttempt(), p.id)
}

// runPod makes a pod; one in five with runc, the others with crun.
func (s *storm) runPod(config *runtimeapi.PodSandboxConfig, random *rand.Rand) bool {
	p := &pod{object: object{past: []state{gone}}, config: config, handler: "crun"}
	if random.IntN(5) == 0 {
		p.handler = "runc"
	}
	s.mu.Lock()
	s.pods = append(s.pods, p)
	s.mu.Unlock()
	return s.call("RunPodSandbox", there, false, func(ctx context.Context) error {
		resp, err := s.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: p.handler})
		p.id = resp.GetPodSandboxId()
		return err
	}, &p.object)
}

// removePod is what the kubelet does with a pod that is over.
func (s *storm) removePod(p *pod) bool {
	var run []*object
	all := []*object{&p.object}
	for _, c := range p.ctrs {
		switch s.is(&c.object) {
		case gone:
			continue
		case running:
			run = append(run, &c.object)
		}
		all = append(all, &c.object)
	}
	return s.call("StopPodSandbox", stopped, false, func(ctx context.Context) error {
		_, err := s.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id})
		return err
	}, run...) && s.call("RemovePodSandbox", gone, false, func(ctx context.Context) error {
		_, err := s.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id})
		return err
	}, all...)
}

// scripts of containers, with the exit codes of those that end.
var scripts = []struct {
	text string
	code int32
}{
	{"while :; do sleep 1000; done", -1},
	{"while :; do seq 1000; sleep 1; done", -1},
	{"sleep 1; exit 4", 4},
	{"seq 2000; echo written >/file; exit 5", 5},
}

// create makes a container, of the image that is always there.
func (s *storm) create(p *pod, random *rand.Rand) bool {
	script := scripts[random.IntN(len(scripts))]
	c := &container{object: object{past: []state{gone}}, name: fmt.Sprintf("c%d", len(p.ctrs)), code: script.code}
	s.mu.Lock()
	p.ctrs = append(p.ctrs, c)
	s.mu.Unlock()
	return s.call("CreateContainer", created, false, func(ctx context.Context) (err error) {
		c.id, err = s.createContainer(ctx, p, c.name, 0, script.text)
		return err
	}, &c.object)
}

func (n *node) createContainer(ctx context.Context, p *pod, name string, image int, script string) (string, error) {
	resp, err := n.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, SandboxConfig: p.config,
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: name},
			Image:    &runtimeapi.ImageSpec{Image: n.registry.name(image)},
			Command:  []string{"/bin/sh", "-c", script}, LogPath: name + ".log",
			Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: p.config.GetLinux().GetSecurityContext().GetNamespaceOptions()}},
		}})
	return resp.GetContainerId(), err
}

// use runs a pod and a container of the image in it, and compares a file.
func (n *node) use(config *runtimeapi.PodSandboxConfig, image int, random *rand.Rand) *pod {
	n.t.Helper()
	s := n.calm()
	if !s.runPod(config, random) {
		n.t.Fatalf("pod %s could not be run", config.GetMetadata().GetName())
	}
	p := n.pods[len(n.pods)-1]
	must(n.t, s.request(func(ctx context.Context) error {
		id, err := s.createContainer(ctx, p, "check", image, "while :; do sleep 1000; done")
		if err != nil {
			return err
		}
		c := &container{object: object{past: []state{gone, created, running}}, name: "check", id: id, code: -1}
		p.ctrs = append(p.ctrs, c)
		if _, err := s.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
			return err
		}
		resp, err := s.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sha256sum", "/own/large"}, Timeout: 120})
		if got, _, _ := strings.Cut(string(resp.GetStdout()), " "); err == nil && got != n.registry.sums[image] {
			err = fmt.Errorf("a file of image %d is not what was pulled: %q, want %s", image, resp, n.registry.sums[image])
		}
		return err
	}))
	return p
}

// learn is the first life: all images are pulled, a pod comes and goes; then the machine is as it will have to be.
func (n *node) learn(random *rand.Rand) {
	n.t.Helper()
	s := n.calm()
	for i := range n.images {
		n.images[i] = &object{past: []state{gone}}
		if !s.call("PullImage", there, true, func(ctx context.Context) error {
			_, err := n.Image.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: n.registry.name(i)}})
			return err
		}, n.images[i]) {
			n.t.FailNow()
		}
		n.keys[i] = n.keysOf(i)
	}
	n.layers = n.readLayers()
	p := n.use(n.podConfig(0, true), 0, random)
	if !s.removePod(p) {
		n.t.FailNow()
	}
	must(n.t, n.synced(func() error { _, err := n.try("sync"); return err }))
	n.idle = n.state()
}

// readLayers returns a digest of each layer's tree.
func (n *node) readLayers() map[string]string {
	n.t.Helper()
	layers := map[string]string{}
	for _, line := range n.lines(`set -e -o pipefail; cd /node/root/images/layers
for k in *; do [ ! -d $k ] || { s=$(/usr/bin/tar --sort=name --numeric-owner -C $k/fs -cf - . | sha256sum); echo $k $s; }; done`) {
		key, sum, _ := strings.Cut(line, " ")
		layers[key] = sum
	}
	return layers
}

// state is all that pods could leave behind.
func (n *node) state() map[string]bool {
	n.t.Helper()
	state := map[string]bool{}
	for _, line := range n.lines(`/gantry/bin/list /node && find /run/gantry -mindepth 1 ! -path '*/supervisor/staging/*' | sed 's/^/file /'`) {
		if !strings.HasPrefix(line, "process ") && !strings.HasPrefix(line, "file /node/logs") {
			state[line] = true
		}
	}
	return state
}

// rest requires that the machine has nothing that it had not without a pod.
func (n *node) rest() {
	n.t.Helper()
	n.eventually("nothing is left of the pods", func() error {
		now := n.state()
		maps.DeleteFunc(now, func(line string, _ bool) bool { return n.idle[line] })
		if len(now) == 0 {
			return nil
		}
		return errors.New("left:\n" + strings.Join(slices.Sorted(maps.Keys(now)), "\n"))
	})
}
