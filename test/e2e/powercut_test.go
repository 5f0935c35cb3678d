package e2e

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What Gantry flushes to the disk: a power cut takes nothing of it. Logs are the containers'.
var flushed = regexp.MustCompile(`^images/(layers/|meta\.db)`)

// A power cut leaves files without their content where that was not flushed: empty, of zeros, or of their beginning. The
// next start serves whatever of them it is, keeps what is whole, and the same pods can be made. Damage of a real reset is
// test/reset's; here no file is forgotten.
func TestPowerCutTakesContents(t *testing.T) {
	for _, c := range []struct {
		name string
		of   int // every of-th file
		lose func([]byte) []byte
	}{
		{"empty", 1, func([]byte) []byte { return nil }},
		{"some empty", 2, func([]byte) []byte { return nil }},
		{"beginning", 1, func(b []byte) []byte { return b[:len(b)/16] }}, // behind it a record has spaces
		{"some zeros at the end", 2, func(b []byte) []byte { return append(slices.Clone(b[:len(b)/3]), make([]byte, len(b)-len(b)/3)...) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t)
			port := func(c *runtimeapi.PodSandboxConfig) {
				c.PortMappings = []*runtimeapi.PortMapping{{HostPort: 18081, ContainerPort: 80}}
			}
			// As a kubelet does, so that what it told is in a file too.
			if _, err := n.Runtime.UpdateRuntimeConfig(n.context(), &runtimeapi.UpdateRuntimeConfigRequest{
				RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: "10.212.7.0/24"}}}); err != nil {
				t.Fatal(err)
			}
			before := map[string]*pod{"pod": n.made("pod", port), "shared": n.made("shared", sharedPID), "stopped": n.made("stopped")}
			for _, p := range before {
				p.run("ran", forever)
				p.create("created", forever)
			}
			if _, err := n.Runtime.StopPodSandbox(n.context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: before["stopped"].id}); err != nil {
				t.Fatal(err)
			}
			disk := n.disk()
			for _, p := range before {
				if err := n.removePod(p.id); err != nil {
					t.Fatal(err)
				}
			}
			if err := n.Audit(); err != nil {
				t.Fatal(err)
			}
			n.end(true) // the kernel is as after a reboot, and now the disk as when the pods lived
			lost := n.putBack(disk, c.of, c.lose)
			n.rewrite("pods", `"bootID":"[^"]*"`, `"bootID":"before"`)
			n.rewrite("containers", `"bootID":"[^"]*"`, `"bootID":"before"`)
			if err := n.StartDaemon(context.Background()); err != nil {
				t.Fatal(err)
			}
			n.wantUnlost(before, lost)
			for _, p := range n.pods() {
				if err := n.removePod(p.GetId()); err != nil {
					t.Error(err)
				}
			}
			if err := n.auditBeside("quarantine"); err != nil {
				t.Error(err)
			}
			for name, p := range before {
				again := n.runPod(name, func(c *runtimeapi.PodSandboxConfig) {
					c.Linux, c.PortMappings = p.config.GetLinux(), p.config.GetPortMappings()
				})
				if got := again.run("c", forever).exec("echo", "hello"); got != "hello\n" {
					t.Errorf("exec in pod %s made again: %q", name, got)
				}
			}
		})
	}
}

// made makes a pod that the test removes, or loses.
func (n *node) made(name string, change ...func(*runtimeapi.PodSandboxConfig)) *pod {
	n.t.Helper()
	p := &pod{node: n, config: n.podConfig(name, change...)}
	resp, err := n.Runtime.RunPodSandbox(n.context(), &runtimeapi.RunPodSandboxRequest{Config: p.config})
	if err != nil {
		n.t.Fatal(err)
	}
	p.id = resp.GetPodSandboxId()
	return p
}

// disk is what is in all files that are not flushed, by their names.
func (n *node) disk() map[string][]byte {
	n.t.Helper()
	root, disk := filepath.Join(n.Dir, "root"), map[string][]byte{}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		name := strings.TrimPrefix(path, root+"/")
		if err != nil || !e.Type().IsRegular() || flushed.MatchString(name) {
			return err
		}
		disk[name], err = os.ReadFile(path)
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return disk
}

// putBack writes the files, of every of-th what a power cut could leave of it, and returns the names of these.
func (n *node) putBack(disk map[string][]byte, of int, lose func([]byte) []byte) (lost []string) {
	n.t.Helper()
	kinds := map[string]bool{}
	for i, name := range slices.Sorted(maps.Keys(disk)) {
		body := disk[name]
		if i%of == 0 && len(body) > 1 { // not a spare file
			body = lose(body)
			lost = append(lost, name)
			kinds[filepath.Dir(name)] = true
		}
		path := filepath.Join(n.Dir, "root", name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, body, 0o600)); err != nil {
			n.t.Fatal(err)
		}
	}
	if !kinds["pods"] || !kinds["containers"] || !kinds["cni"] {
		n.t.Fatalf("lost the contents of %v", lost)
	}
	n.t.Logf("of %d files lost the contents of %d", len(disk), len(lost))
	return lost
}

// wantUnlost requires that the pods are there whose records are whole, not ready, and no others.
func (n *node) wantUnlost(before map[string]*pod, lost []string) {
	n.t.Helper()
	var want, got []string
	for _, p := range before {
		if !slices.Contains(lost, "pods/"+p.id+".json") {
			want = append(want, p.id)
		}
	}
	for _, p := range n.pods() {
		got = append(got, p.GetId())
		if p.GetState() != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
			n.t.Errorf("pod %s is %v", p.GetMetadata().GetName(), p.GetState())
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		n.t.Errorf("pods are %v, want those whose records are whole: %v", got, want)
	}
}

// auditBeside is an Audit without folders and files of the root that people look at and remove.
func (n *node) auditBeside(names ...string) error {
	for _, name := range names {
		if err := os.RemoveAll(filepath.Join(n.Dir, "root", name)); err != nil {
			return err
		}
	}
	damaged, err := filepath.Glob(filepath.Join(n.Dir, "root/cni/*.damaged"))
	if err != nil {
		return err
	}
	more, err := filepath.Glob(filepath.Join(n.Dir, "root/cni/networks/*/*.damaged"))
	if err != nil {
		return err
	}
	for _, path := range append(damaged, more...) {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return n.Audit()
}
