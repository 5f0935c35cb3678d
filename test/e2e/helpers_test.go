package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

func TestMain(m *testing.M) { harness.Main(m) }

// node is an instance with the test images, and the short forms that tests talk to it with.
type node struct {
	*harness.Instance
	t testing.TB
}

// newNode starts an instance with a registry of its own and pulls busybox.
func newNode(t testing.TB, flags ...string) *node {
	t.Helper()
	n := &node{Instance: harness.New(t, harness.Config{Registry: harness.Registry(t), Flags: flags}), t: t}
	n.pull(images.Busybox)
	return n
}

// context bounds every single request; no test needs a minute for one.
func (n *node) context() context.Context {
	ctx, cancel := context.WithTimeout(n.t.Context(), time.Minute)
	n.t.Cleanup(cancel)
	return ctx
}

func (n *node) pull(image string) string {
	n.t.Helper()
	resp, err := n.Image.PullImage(n.context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: image}})
	if err != nil {
		n.t.Fatalf("pulling %s: %v", image, err)
	}
	return resp.GetImageRef()
}

// pod is a sandbox with the config it was made from.
type pod struct {
	*node
	id     string
	config *runtimeapi.PodSandboxConfig
}

// podConfig is what the kubelet sends for a plain pod, changed by the given functions.
func (n *node) podConfig(name string, change ...func(*runtimeapi.PodSandboxConfig)) *runtimeapi.PodSandboxConfig {
	c := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Uid: "uid-" + name, Namespace: "e2e", Attempt: 1},
		Hostname:     name,
		LogDirectory: filepath.Join(n.LogDir, name),
		Labels:       map[string]string{"app": name},
		Annotations:  map[string]string{"e2e/note": "kept"},
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}}},
	}
	for _, f := range change {
		f(c)
	}
	return c
}

func hostNetwork(c *runtimeapi.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
}

func sharedPID(c *runtimeapi.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
}

// runPod makes a pod and removes it when the test ends.
func (n *node) runPod(name string, change ...func(*runtimeapi.PodSandboxConfig)) *pod {
	n.t.Helper()
	p := &pod{node: n, config: n.podConfig(name, change...)}
	resp, err := n.Runtime.RunPodSandbox(n.context(), &runtimeapi.RunPodSandboxRequest{Config: p.config})
	if err != nil {
		n.t.Fatalf("running pod %s: %v", name, err)
	}
	p.id = resp.GetPodSandboxId()
	n.t.Cleanup(func() {
		if err := n.removePod(p.id); err != nil {
			n.t.Errorf("removing pod %s: %v", name, err)
		}
	})
	return p
}

// removePod stops and removes with a context of its own: the test's is over when clean-ups run.
func (n *node) removePod(id string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := n.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		return err
	}
	_, err := n.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
	return err
}

// in is the pod for a subtest: its failures are the subtest's.
func (p *pod) in(t *testing.T) *pod {
	return &pod{node: &node{Instance: p.Instance, t: t}, id: p.id, config: p.config}
}

func (p *pod) status() *runtimeapi.PodSandboxStatus {
	p.t.Helper()
	resp, err := p.Runtime.PodSandboxStatus(p.context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil {
		p.t.Fatalf("status of pod %s: %v", p.config.GetMetadata().GetName(), err)
	}
	return resp.GetStatus()
}

// container is a container of a pod.
type container struct {
	*pod
	id   string
	name string
}

// containerConfig is what the kubelet sends for a plain container that runs a shell script.
func (p *pod) containerConfig(name, script string, change ...func(*runtimeapi.ContainerConfig)) *runtimeapi.ContainerConfig {
	c := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: images.Busybox, UserSpecifiedImage: images.Busybox},
		Command:  []string{"sh", "-c", script},
		LogPath:  name + ".log",
		Labels:   map[string]string{"container": name},
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: p.config.GetLinux().GetSecurityContext().GetNamespaceOptions(),
			}},
	}
	for _, f := range change {
		f(c)
	}
	return c
}

// security is a change of a container's security context.
func security(f func(*runtimeapi.LinuxContainerSecurityContext)) func(*runtimeapi.ContainerConfig) {
	return func(c *runtimeapi.ContainerConfig) { f(c.GetLinux().GetSecurityContext()) }
}

const forever = "trap exit TERM; while :; do sleep 1000 & wait; done" // ends at once on SIGTERM

func (p *pod) create(name, script string, change ...func(*runtimeapi.ContainerConfig)) *container {
	p.t.Helper()
	c := &container{pod: p, name: name}
	var err error
	if c.id, err = p.tryCreate(p.containerConfig(name, script, change...)); err != nil {
		p.t.Fatalf("creating container %s: %v", name, err)
	}
	return c
}

func (p *pod) tryCreate(config *runtimeapi.ContainerConfig) (string, error) {
	resp, err := p.Runtime.CreateContainer(p.context(), &runtimeapi.CreateContainerRequest{
		PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
	return resp.GetContainerId(), err
}

// run creates and starts.
func (p *pod) run(name, script string, change ...func(*runtimeapi.ContainerConfig)) *container {
	p.t.Helper()
	c := p.create(name, script, change...)
	c.start()
	return c
}

func (c *container) start() {
	c.t.Helper()
	if _, err := c.Runtime.StartContainer(c.context(), &runtimeapi.StartContainerRequest{ContainerId: c.id}); err != nil {
		c.t.Fatalf("starting container %s: %v", c.name, err)
	}
}

func (c *container) stop(timeout int64) {
	c.t.Helper()
	if _, err := c.Runtime.StopContainer(c.context(), &runtimeapi.StopContainerRequest{ContainerId: c.id, Timeout: timeout}); err != nil {
		c.t.Fatalf("stopping container %s: %v", c.name, err)
	}
}

func (c *container) remove() {
	c.t.Helper()
	if _, err := c.Runtime.RemoveContainer(c.context(), &runtimeapi.RemoveContainerRequest{ContainerId: c.id}); err != nil {
		c.t.Fatalf("removing container %s: %v", c.name, err)
	}
}

func (c *container) status() *runtimeapi.ContainerStatus {
	c.t.Helper()
	resp, err := c.Runtime.ContainerStatus(c.context(), &runtimeapi.ContainerStatusRequest{ContainerId: c.id})
	if err != nil {
		c.t.Fatalf("status of container %s: %v", c.name, err)
	}
	return resp.GetStatus()
}

// waitExit waits until the container has exited and returns its status.
func (c *container) waitExit() *runtimeapi.ContainerStatus {
	c.t.Helper()
	var s *runtimeapi.ContainerStatus
	c.eventually("container "+c.name+" exits", func() bool {
		s = c.status()
		return s.GetState() == runtimeapi.ContainerState_CONTAINER_EXITED
	})
	return s
}

// output runs a script in a new container to its end, and returns what it wrote to stdout and its exit code.
func (p *pod) output(name, script string, change ...func(*runtimeapi.ContainerConfig)) (string, int32) {
	p.t.Helper()
	c := p.run(name, script, change...)
	s := c.waitExit()
	return c.logged("stdout"), s.GetExitCode()
}

// exec runs a command in the container and requires that it succeeds.
func (c *container) exec(argv ...string) string {
	c.t.Helper()
	resp, err := c.execSync(30, argv...)
	if err != nil || resp.GetExitCode() != 0 {
		c.t.Fatalf("exec %q in container %s: exit code %d, stderr %q, %v", argv, c.name, resp.GetExitCode(), resp.GetStderr(), err)
	}
	return string(resp.GetStdout())
}

func (c *container) execSync(timeout int64, argv ...string) (*runtimeapi.ExecSyncResponse, error) {
	return c.Runtime.ExecSync(c.context(), &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: argv, Timeout: timeout})
}

// eventually polls until the condition holds; the bound only decides when a broken test gives up.
func (n *node) eventually(what string, condition func() bool) {
	n.t.Helper()
	for deadline := time.Now().Add(time.Minute); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			n.t.Fatalf("waited in vain until %s", what)
		}
	}
}

// logLine is a line of a CRI log file: time, stream, F(ull) or P(artial), text.
type logLine struct {
	at           time.Time
	stream, text string
	partial      bool
}

func (c *container) logPath() string {
	return filepath.Join(c.config.GetLogDirectory(), c.name+".log")
}

func (c *container) log() []logLine {
	c.t.Helper()
	body, err := os.ReadFile(c.logPath())
	if err != nil {
		c.t.Fatal(err)
	}
	var lines []logLine
	for line := range strings.Lines(string(body)) {
		parsed, err := parseLogLine(line)
		if err != nil {
			c.t.Fatalf("%s: %v", c.logPath(), err)
		}
		lines = append(lines, parsed)
	}
	return lines
}

func parseLogLine(line string) (logLine, error) {
	fields := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
	if len(fields) != 4 || !strings.HasSuffix(line, "\n") || (fields[2] != "F" && fields[2] != "P") {
		return logLine{}, fmt.Errorf("not a CRI log line: %q", line)
	}
	at, err := time.Parse(time.RFC3339Nano, fields[0])
	return logLine{at: at, stream: fields[1], text: fields[3], partial: fields[2] == "P"}, err
}

// logged is the text that the container wrote to one stream.
func (c *container) logged(stream string) string {
	c.t.Helper()
	var b strings.Builder
	for _, l := range c.log() {
		if l.stream == stream {
			b.WriteString(l.text)
			if !l.partial {
				b.WriteByte('\n')
			}
		}
	}
	return b.String()
}

// wantError requires a gRPC code and that the message names the things.
func wantError(t testing.TB, err error, code codes.Code, names ...string) {
	t.Helper()
	if status.Code(err) != code {
		t.Errorf("got %v, want code %s", err, code)
		return
	}
	for _, name := range names {
		if !strings.Contains(status.Convert(err).Message(), name) {
			t.Errorf("the message does not name %q: %v", name, err)
		}
	}
}
