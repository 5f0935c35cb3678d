package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

// program is an executable that the machine must have.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("CI must have %s: hack/install-deps.sh test", name)
		}
		t.Skipf("no %s: run hack/install-deps.sh test", name)
	}
	return path
}

// runc is the one that instances have.
func runc(t *testing.T) string {
	t.Helper()
	path, err := harness.FindRunc()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// spy is an OCI runtime that notes its command line in calls and is runc then.
func spy(t *testing.T, dir string) (path, calls string) {
	t.Helper()
	path, calls = filepath.Join(dir, "spy"), filepath.Join(dir, "calls")
	script := fmt.Sprintf("#!/bin/sh\necho \"$*\" >> %s\nexec %s \"$@\"\n", calls, runc(t))
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return path, calls
}

// podOf runs a pod of a handler.
func (n *node) podOf(name, handler string, change ...func(*runtimeapi.PodSandboxConfig)) (*pod, error) {
	p := &pod{node: n, config: n.podConfig(name, change...)}
	resp, err := n.Runtime.RunPodSandbox(n.context(), &runtimeapi.RunPodSandboxRequest{Config: p.config, RuntimeHandler: handler})
	if err != nil {
		return nil, err
	}
	p.id = resp.GetPodSandboxId()
	n.t.Cleanup(func() {
		if err := n.removePod(p.id); err != nil {
			n.t.Errorf("removing pod %s: %v", name, err)
		}
	})
	return p, nil
}

// info is the verbose part of a container's status.
type info struct {
	Pid         int
	SandboxID   string
	RuntimeType string
	Image       string
	RuntimeSpec map[string]any
}

func (c *container) info() info {
	c.t.Helper()
	resp, err := c.Runtime.ContainerStatus(c.context(), &runtimeapi.ContainerStatusRequest{ContainerId: c.id, Verbose: true})
	if err != nil {
		c.t.Fatal(err)
	}
	var out info
	if err := json.Unmarshal([]byte(resp.GetInfo()["info"]), &out); err != nil {
		c.t.Fatalf("%v in %s", err, resp.GetInfo())
	}
	return out
}

// halfDelete makes of a container what crun's delete leaves that is killed: it removes the files of its state in the order
// of their directory, and refuses to delete a status whose config.json has gone.
func halfDelete(t *testing.T, n *node, c *container) {
	t.Helper()
	root := filepath.Join(n.Dir, "run/runtimes/crun")
	if err := os.Remove(filepath.Join(root, c.id, "config.json")); err != nil {
		t.Fatal(err)
	}
	if err := exec.Command(program(t, "crun"), "--root", root, "delete", "--force", c.id).Run(); err == nil {
		t.Error("crun deletes it all the same: the supervisor need not")
	}
	c.remove()
	if _, err := os.Stat(filepath.Join(root, c.id)); err == nil {
		t.Error("crun's state is left")
	}
}

// TestHandlers runs pods of several OCI runtimes side by side: runc, runc with
// a root and options of its own, and Debian's crun, which has no `features`;
// one that is not installed and one that hangs keep no other from running.
func TestHandlers(t *testing.T) {
	crun := program(t, "crun")
	unmount, err := harness.MountHugetlb("gantrytest")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unmount(); err != nil {
			t.Error(err)
		}
	})
	dir := t.TempDir()
	second, calls := spy(t, dir)
	n := &node{t: t, Instance: harness.New(t, harness.Config{Registry: harness.Registry(t), TOML: fmt.Sprintf(`
[runtimes.second]
path = %q
root = %q
options = ["--debug"]
[runtimes.crun]
path = %q
[runtimes.gone]
path = "/no/such/runtime"
[runtimes.rootless]
path = %q
root = "/dev/null/x"
[runtimes.wrong]
path = %q
options = ["--no-such-option"]
`, second, dir+"/root", crun, runc(t), runc(t))})}
	n.pull(images.Busybox)

	for i, row := range []struct {
		name, runtime string
		share         func(*runtimeapi.PodSandboxConfig)
	}{
		{"", "runc", hostNetwork}, {"second", "second", hostNetwork}, {"second", "second", sharedPID},
		{"crun", "crun", hostNetwork}, {"crun", "crun", sharedPID},
	} {
		p, err := n.podOf(fmt.Sprint("pod-", i), row.name, row.share)
		if err != nil {
			t.Fatalf("a pod of %q: %v", row.name, err)
		}
		if got := p.status().GetRuntimeHandler(); got != row.name {
			t.Errorf("handler %q in the status, want %q", got, row.name)
		}
		list, err := n.Runtime.ListPodSandbox(n.context(), &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{Id: p.id}})
		if err != nil || len(list.GetItems()) != 1 || list.GetItems()[0].GetRuntimeHandler() != row.name {
			t.Errorf("listed as %v, %v", list, err)
		}
		c := p.run("c", "echo hello; mkdir /tmp/x; "+forever)
		if got := c.exec("echo", "from", "exec"); got != "from exec\n" {
			t.Errorf("exec by %s: %q", row.runtime, got)
		}
		if got := c.info(); got.RuntimeType != row.runtime || got.Pid == 0 || got.SandboxID != p.id || got.Image != images.Busybox || got.RuntimeSpec["process"] == nil {
			t.Errorf("verbose info %+v", got)
		}
		c.stop(5)
		if s := c.status(); s.GetReason() == "Unknown" || c.logged("stdout") != "hello\n" {
			t.Errorf("%s: status %v, log %q", row.runtime, s, c.logged("stdout"))
		}
		if _, code := p.output("d", "exit 7"); code != 7 {
			t.Errorf("%s: exit code %d, want 7", row.runtime, code)
		}
		if row.runtime == "crun" {
			halfDelete(t, n, p.run("e", forever))
		}
		if err := n.removePod(p.id); err != nil {
			t.Errorf("removing a pod of %s: %v", row.runtime, err)
		}
	}
	data, err := os.ReadFile(calls)
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"run --detach", "exec --detach", "delete"} {
		if !strings.Contains(string(data), " --debug "+command) {
			t.Errorf("no %q with the handler's options among\n%s", command, data)
		}
	}
	for line := range strings.Lines(string(data)) {
		if !strings.HasPrefix(line, "--root "+dir+"/root ") && line != "--debug --version\n" && line != "--debug features\n" {
			t.Errorf("called without the handler's root: %s", line)
		}
	}
	if left, err := os.ReadDir(dir + "/root"); err != nil || len(left) != 0 {
		t.Errorf("left in the handler's root: %v, %v", left, err)
	}

	_, err = n.podOf("unknown", "no-such-handler")
	wantError(t, err, codes.InvalidArgument, `"no-such-handler"`, "crun, gone, rootless, runc, second, wrong")
	_, err = n.podOf("gone", "gone")
	wantError(t, err, codes.FailedPrecondition, `"gone"`, `runtimes.gone.path = "/no/such/runtime"`)
	_, err = n.podOf("rootless", "rootless")
	wantError(t, err, codes.FailedPrecondition, `"rootless"`, "runtimes.rootless.root", "/dev/null/x")
	_, err = n.podOf("wrong", "wrong")
	wantError(t, err, codes.FailedPrecondition, `"wrong"`, "no-such-option")

	st, err := n.Runtime.Status(n.context(), &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, h := range st.GetRuntimeHandlers() {
		got[h.GetName()] = h.GetFeatures().GetRecursiveReadOnlyMounts()
	}
	if len(got) != 7 || !got[""] || !got["runc"] || !got["second"] || got["gone"] || got["wrong"] || got["rootless"] {
		t.Errorf("runtime_handlers %v", st.GetRuntimeHandlers())
	}
	var verbose struct {
		DefaultHandler string
		Handlers       []struct{ Name, Path, Error string }
	}
	if err := json.Unmarshal([]byte(st.GetInfo()["config"]), &verbose); err != nil || verbose.DefaultHandler != "runc" || len(verbose.Handlers) != 6 {
		t.Errorf("verbose status %s, %v", st.GetInfo(), err)
	}
	for _, h := range verbose.Handlers {
		if (h.Error != "") != (h.Name == "gone" || h.Name == "wrong" || h.Name == "rootless") {
			t.Errorf("the verbose status says of %s: error %q", h.Name, h.Error)
		}
	}
}

// TestChangedHandler: containers keep the OCI runtime that they were made
// with when their handler becomes another or goes; new ones get what it is now.
func TestChangedHandler(t *testing.T) {
	dir := t.TempDir()
	old, calls := spy(t, dir)
	toml := func(path string) string {
		return fmt.Sprintf("[runtimes.moving]\npath = %q\nroot = %q\n", path, dir+"/root-of-"+filepath.Base(path))
	}
	n := &node{t: t, Instance: harness.New(t, harness.Config{Registry: harness.Registry(t), TOML: toml(old)})}
	n.pull(images.Busybox)
	p, err := n.podOf("pod", "moving")
	if err != nil {
		t.Fatal(err)
	}
	created, running := p.create("created", forever), p.run("running", forever)
	called := func() string {
		data, err := os.ReadFile(calls)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(calls); err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	restart := func(config string) {
		if err := os.WriteFile(n.ConfigFile(), []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := n.Restart(n.context()); err != nil {
			t.Fatal(err)
		}
	}
	restart(toml(runc(t)))
	called()
	created.start()
	if got := running.exec("echo", "x") + created.exec("echo", "y"); got != "x\ny\n" {
		t.Errorf("exec: %q", got)
	}
	if got := called(); !strings.Contains(got, " run ") || strings.Count(got, " exec ") != 2 {
		t.Errorf("containers of the old runtime are run by another; it was called with\n%s", got)
	}
	if p.run("new", forever).exec("echo", "z"); strings.Contains(fmt.Sprint(os.ReadFile(calls)), "nil") {
		t.Error("a new container is run by the old runtime")
	}

	restart("") // the handler is gone
	_, err = p.tryCreate(p.containerConfig("late", forever))
	wantError(t, err, codes.InvalidArgument, `"moving"`, "not configured")
	if got := running.exec("echo", "x"); got != "x\n" {
		t.Errorf("exec: %q", got)
	}
	running.stop(5)
	running.remove()
	if err := n.removePod(p.id); err != nil {
		t.Error(err)
	}
	if got := called(); !strings.Contains(got, " delete ") {
		t.Errorf("the old runtime did not delete; it was called with\n%s", got)
	}
}

// TestCgroupWritable: a container of such a handler makes cgroups below its
// own on version 2; on version 1 the handler takes no pods.
func TestCgroupWritable(t *testing.T) {
	n := &node{t: t, Instance: harness.New(t, harness.Config{
		Registry: harness.Registry(t), TOML: fmt.Sprintf("[runtimes.writable]\npath = %q\ncgroup_writable = true\n", runc(t)),
	})}
	n.pull(images.Busybox)
	const script = "d=/sys/fs/cgroup; [ -d $d/memory ] && d=$d/memory; mkdir $d/sub && echo made; touch /sys/x 2>/dev/null || echo read-only"
	p, err := n.podOf("pod", "writable", hostNetwork)
	if _, verr := os.Stat("/sys/fs/cgroup/cgroup.controllers"); verr != nil {
		wantError(t, err, codes.FailedPrecondition, "runtimes.writable.cgroup_writable", "version 2")
	} else if err != nil {
		t.Fatal(err)
	} else if got, _ := p.output("c", script); got != "made\nread-only\n" {
		t.Errorf("%q", got)
	}
	plain := n.runPod("plain", hostNetwork)
	if got, _ := plain.output("c", script); got != "read-only\n" {
		t.Errorf("without: %q", got)
	}
}
