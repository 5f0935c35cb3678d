package e2e

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

// TestProcess: what a container's first process gets where nobody attaches to it.
func TestProcess(t *testing.T) {
	n := &node{t: t, Instance: harness.New(t, harness.Config{Registry: harness.Registry(t), TOML: "shm_size = \"8MiB\"\n"})}
	n.pull(images.Busybox)
	p := n.runPod("pod", hostNetwork)

	t.Run("shm_size", func(t *testing.T) {
		const script = "df -k /dev/shm | awk 'NR == 2 {print $2}'; head -c 9000000 /dev/zero 2>/dev/null > /dev/shm/x; wc -c < /dev/shm/x; rm /dev/shm/x"
		if got, _ := p.output("shm", script); got != "8192\n8388608\n" {
			t.Errorf("%q", got)
		}
	})
	t.Run("stdin", func(t *testing.T) {
		open := p.run("stdin-open", "cat; echo ended", func(c *runtimeapi.ContainerConfig) { c.Stdin = true })
		if got, code := p.output("stdin-none", "cat; echo ended"); got != "ended\n" || code != 0 {
			t.Errorf("without stdin: %q, exit code %d", got, code)
		}
		if s := open.status(); s.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("with stdin, which nobody closes: %v", s)
		}
	})
	t.Run("limits", func(t *testing.T) {
		if got, _ := p.output("limits", "ulimit -c; ulimit -n"); len(strings.Fields(got)) != 2 || strings.Fields(got)[1] == "0" {
			t.Errorf("core and nofile: %q", got)
		}
	})
	for name, row := range map[string]struct {
		change func(*runtimeapi.ContainerConfig)
		names  string
	}{
		"env that is no text": {func(c *runtimeapi.ContainerConfig) {
			c.Envs = []*runtimeapi.KeyValue{{Key: "BINARY", Value: []byte{0xff}}}
		}, `"BINARY"`},
		"env with NUL": {func(c *runtimeapi.ContainerConfig) {
			c.Envs = []*runtimeapi.KeyValue{{Key: "N", Value: []byte("a\x00b")}}
		}, `"N"`},
		"env without a name":    {func(c *runtimeapi.ContainerConfig) { c.Envs = []*runtimeapi.KeyValue{{Value: []byte("a")}} }, "envs"},
		"a descriptor as cwd":   {func(c *runtimeapi.ContainerConfig) { c.WorkingDir = "/proc/self/fd/7" }, "working_dir"},
		"a relative cwd":        {func(c *runtimeapi.ContainerConfig) { c.WorkingDir = "a/b" }, "working_dir"},
		"unknown PID mode":      {security(func(s *securityContext) { s.NamespaceOptions = &runtimeapi.NamespaceOption{Network: 2, Pid: 99} }), "namespace_options.pid"},
		"unknown stop signal":   {func(c *runtimeapi.ContainerConfig) { c.StopSignal = 9999 }, "stop_signal"},
		"unknown seccomp type":  {security(func(s *securityContext) { s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: 77} }), "seccomp"},
		"unknown groups policy": {security(func(s *securityContext) { s.SupplementalGroupsPolicy = 9 }), "supplemental_groups_policy"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := p.tryCreate(p.containerConfig("bad", forever, row.change))
			wantError(t, err, codes.InvalidArgument, row.names)
		})
	}
	list, err := n.Runtime.ListContainers(n.context(), &runtimeapi.ListContainersRequest{})
	if err != nil || slices.ContainsFunc(list.GetContainers(), func(c *runtimeapi.Container) bool { return c.GetMetadata().GetName() == "bad" }) {
		t.Errorf("a refused container is listed: %v, %v", list, err)
	}
}

// TestOwnEnvironment: containers of one image that are created at once have
// each its own environment, and none of the daemon's (CVE-2021-21334).
func TestOwnEnvironment(t *testing.T) {
	n := newNode(t)
	p := n.runPod("pod", hostNetwork)
	const count = 200
	var made [count]*container
	var requests sync.WaitGroup
	for i := range count {
		requests.Go(func() {
			name := fmt.Sprint("c", i)
			id, err := p.tryCreate(p.containerConfig(name, "true", func(c *runtimeapi.ContainerConfig) {
				c.Envs = []*runtimeapi.KeyValue{{Key: "OWN", Value: []byte("secret-" + name)}, {Key: "ONLY_" + name, Value: []byte("x")}}
			}))
			if err != nil {
				t.Errorf("%s: %v", name, err)
				return
			}
			made[i] = &container{pod: p, id: id, name: name}
		})
	}
	requests.Wait()
	for _, c := range made {
		if c == nil {
			continue
		}
		process, _ := c.info().RuntimeSpec["process"].(map[string]any)
		var env []string
		for _, e := range process["env"].([]any) {
			env = append(env, e.(string))
		}
		foreign := func(e string) bool {
			return strings.HasPrefix(e, "ONLY_") && e != "ONLY_"+c.name+"=x" || strings.HasPrefix(e, "OWN=") && e != "OWN=secret-"+c.name || strings.HasPrefix(e, "GANTRY_")
		}
		if slices.ContainsFunc(env, foreign) || !slices.Contains(env, "OWN=secret-"+c.name) || !slices.Contains(env, "ONLY_"+c.name+"=x") {
			t.Errorf("%s has the environment %q", c.name, env)
		}
	}
}
