package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/images"
)

const busyboxTag = images.Busybox

// listedContainer is the container as a list shows it.
func (c *container) listedContainer() *runtimeapi.Container {
	c.t.Helper()
	resp, err := c.Runtime.ListContainers(c.context(), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{Id: c.id}})
	if err != nil || len(resp.GetContainers()) != 1 {
		c.t.Fatalf("listing container %s: %v, %v", c.id, resp.GetContainers(), err)
	}
	return resp.GetContainers()[0]
}

func TestContainerFields(t *testing.T) {
	n := newNode(t)
	n.pull(images.Demo)
	subtests(t, n, map[string]func(*node){
		"image": func(n *node) {
			p, img := n.runPod("image"), n.image(images.Demo)
			digest := img.GetRepoDigests()[0]
			for i, spec := range []*runtimeapi.ImageSpec{
				{Image: img.GetId(), UserSpecifiedImage: images.Demo, Annotations: map[string]string{"a": "b"}, RuntimeHandler: "runc"}, {Image: images.Demo}, {Image: digest},
				{Image: strings.TrimPrefix(img.GetId(), "sha256:")[:16]}, {Image: img.GetId(), UserSpecifiedImage: "as the author wrote it"},
			} {
				c := p.create("c"+string(rune('0'+i)), "true", func(c *runtimeapi.ContainerConfig) { c.Image = spec })
				s, l := c.status(), c.listedContainer()
				want := spec.GetUserSpecifiedImage()
				if want == "" {
					want = images.Demo
				}
				if s.GetImage().GetImage() != want || s.GetImageRef() != digest || s.GetImageId() != img.GetId() || !maps.Equal(s.GetImage().GetAnnotations(), spec.GetAnnotations()) ||
					s.GetImage().GetRuntimeHandler() != spec.GetRuntimeHandler() {
					n.t.Errorf("%v: image %v, ref %s, id %s", spec, s.GetImage(), s.GetImageRef(), s.GetImageId())
				}
				if !proto.Equal(l.GetImage(), s.GetImage()) || l.GetImageRef() != s.GetImageRef() || l.GetImageId() != s.GetImageId() || l.GetPodSandboxId() != p.id ||
					l.GetCreatedAt() != s.GetCreatedAt() || l.GetState() != s.GetState() || !proto.Equal(l.GetMetadata(), s.GetMetadata()) {
					n.t.Errorf("list %v, status %v", l, s)
				}
			}
			_, err := p.tryCreate(p.containerConfig("c", "true", func(c *runtimeapi.ContainerConfig) { c.Image.Image = "sha256:" + strings.Repeat("0", 64) }))
			wantError(n.t, err, codes.FailedPrecondition, strings.Repeat("0", 64))
		},
		"command": func(n *node) {
			p := n.runPod("command")
			if got, _ := p.output("both", "", func(c *runtimeapi.ContainerConfig) {
				c.Command, c.Args = []string{"echo", "a b"}, []string{"", "$c", "-n"}
			}); got != "a b  $c -n\n" {
				n.t.Errorf("command and args: %q", got)
			}
			if got, _ := p.output("args", "", func(c *runtimeapi.ContainerConfig) { c.Command, c.Args = nil, []string{"echo", "of args"} }); got != "of args\n" {
				n.t.Errorf("args without command: %q", got) // busybox has neither Entrypoint nor Cmd
			}
			_, err := p.tryCreate(p.containerConfig("empty", "", func(c *runtimeapi.ContainerConfig) { c.Command = []string{""} }))
			wantError(n.t, err, codes.InvalidArgument, "command")
		},
		"working_dir": func(n *node) {
			p := n.runPod("cwd")
			for _, dir := range []string{"", "/", "/tmp", "/made/when missing"} {
				want := dir
				if dir == "" {
					want = "/"
				}
				if got, _ := p.output("c"+strings.NewReplacer("/", "-", " ", "-").Replace(dir), "pwd", func(c *runtimeapi.ContainerConfig) { c.WorkingDir = dir }); got != want+"\n" {
					n.t.Errorf("%q: %q", dir, got)
				}
			}
			for _, bad := range []string{"relative", "/a/../b", "/proc/self/fd/7", "/proc/1/root"} {
				_, err := p.tryCreate(p.containerConfig("bad", "pwd", func(c *runtimeapi.ContainerConfig) { c.WorkingDir = bad }))
				wantError(n.t, err, codes.InvalidArgument, "working_dir", bad)
			}
		},
		"envs": func(n *node) {
			p := n.runPod("envs")
			got, _ := p.output("c", "echo \"$A|$B|$HOME|$PATH\"", func(c *runtimeapi.ContainerConfig) {
				c.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("first")}, {Key: "A", Value: []byte("la\"st\n$(x)")}, {Key: "B"}, {Key: "PATH", Value: []byte("/bin:/x")}}
			})
			if !strings.HasPrefix(got, "la\"st\n$(x)||") || !strings.HasSuffix(got, "|/bin:/x\n") {
				n.t.Errorf("%q", got)
			}
			for _, bad := range []*runtimeapi.KeyValue{{Key: "", Value: []byte("x")}, {Key: "A=B"}, {Key: "NUL", Value: []byte("a\x00b")}} {
				_, err := p.tryCreate(p.containerConfig("bad", "true", func(c *runtimeapi.ContainerConfig) { c.Envs = []*runtimeapi.KeyValue{bad} }))
				wantError(n.t, err, codes.InvalidArgument, "envs")
			}
		},
		"labels and annotations": func(n *node) {
			c := n.runPod("texts").create("c", "true", func(c *runtimeapi.ContainerConfig) { c.Labels, c.Annotations = anyText(), anyText() })
			stats, err := n.Runtime.ContainerStats(n.context(), &runtimeapi.ContainerStatsRequest{ContainerId: c.id})
			if err != nil {
				n.t.Fatal(err)
			}
			s, l, a := c.status(), c.listedContainer(), stats.GetStats().GetAttributes()
			for where, got := range map[string][2]map[string]string{
				"status": {s.GetLabels(), s.GetAnnotations()}, "list": {l.GetLabels(), l.GetAnnotations()}, "stats": {a.GetLabels(), a.GetAnnotations()},
			} {
				if !maps.Equal(got[0], anyText()) || !maps.Equal(got[1], anyText()) {
					n.t.Errorf("%s: labels or annotations have changed", where)
				}
			}
		},
		"log_path": func(n *node) {
			p := n.runPod("log-path")
			c := p.run("none", "echo unheard; head -c 300000 /dev/zero", func(c *runtimeapi.ContainerConfig) { c.LogPath = "" })
			if s := c.waitExit(); s.GetExitCode() != 0 || s.GetLogPath() != "" {
				n.t.Errorf("without a log_path: exit code %d, log_path %q", s.GetExitCode(), s.GetLogPath())
			}
			deep := p.run("deep", "echo heard", func(c *runtimeapi.ContainerConfig) { c.LogPath = "deep/er/0.log" })
			want := filepath.Join(p.config.GetLogDirectory(), "deep/er/0.log")
			if s := deep.waitExit(); s.GetLogPath() != want || !strings.Contains(read(t, want), " F heard\n") {
				n.t.Errorf("log_path %s", s.GetLogPath())
			}
		},
		"stop_signal": func(n *node) {
			p := n.runPod("stop-signal")
			for sig, shown := range map[runtimeapi.Signal]string{
				runtimeapi.Signal_SIGNAL_SIGUSR1: "USR1", runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT: "TERM", runtimeapi.Signal_SIGNAL_SIGRTMINPLUS3: "37",
			} {
				c := p.run("c"+strings.ToLower(shown), "trap 'echo got; exit 5' "+shown+"; echo ready; while :; do sleep 0.05; done", func(c *runtimeapi.ContainerConfig) { c.StopSignal = sig })
				want := sig
				if want == runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
					want = runtimeapi.Signal_SIGNAL_SIGTERM
				}
				if got := c.status().GetStopSignal(); got != want {
					n.t.Errorf("%v is reported as %v", sig, got)
				}
				n.eventually("the trap is set", func() bool { return strings.Contains(c.logged("stdout"), "ready") })
				c.stop(20)
				if s := c.status(); s.GetExitCode() != 5 || c.logged("stdout") != "ready\ngot\n" {
					n.t.Errorf("%v: exit code %d, log %q", sig, s.GetExitCode(), c.logged("stdout"))
				}
			}
			_, err := p.tryCreate(p.containerConfig("bad", "true", func(c *runtimeapi.ContainerConfig) { c.StopSignal = 999 }))
			wantError(n.t, err, codes.InvalidArgument, "stop_signal", "999")
		},
		"mounts": func(n *node) {
			dir := filepath.Join(n.LogDir, "mounts")
			for _, d := range []string{"real", "hosts"} {
				if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
					n.t.Fatal(err)
				}
			}
			link, hosts, missing := filepath.Join(dir, "link"), filepath.Join(dir, "hosts", "hosts"), filepath.Join(dir, "missing", "one")
			if err := os.Symlink("real", link); err != nil {
				n.t.Fatal(err)
			}
			if err := os.WriteFile(hosts, []byte("10.1.2.3 mine\n"), 0o644); err != nil {
				n.t.Fatal(err)
			}
			mounts := []*runtimeapi.Mount{
				{HostPath: link + "/", ContainerPath: "//data/./in/", Readonly: true}, {HostPath: hosts, ContainerPath: "/etc/hosts"},
				{HostPath: missing, ContainerPath: "/data/in/../made"},
			}
			mounts[2].ContainerPath = "/made"
			c := n.runPod("mounts").run("c", forever, func(c *runtimeapi.ContainerConfig) { c.Mounts = mounts })
			got := c.status().GetMounts()
			if !slices.EqualFunc(got, mounts, func(a, b *runtimeapi.Mount) bool { return proto.Equal(a, b) }) {
				n.t.Errorf("in the status: %v", got)
			}
			if got := c.exec("sh", "-c", "cat /etc/hosts; touch /made/x && echo ok"); got != "10.1.2.3 mine\nok\n" {
				n.t.Errorf("mounted: %q", got)
			}
			if _, err := os.Stat(filepath.Join(missing, "x")); err != nil {
				n.t.Errorf("a host_path that was missing: %v", err)
			}
		},
		"user": func(n *node) {
			c := n.runPod("user").create("c", "true", security(func(s *securityContext) {
				s.RunAsUser, s.RunAsGroup, s.SupplementalGroups = id(1001), id(1002), []int64{5, 1002, 5}
			}))
			want := &runtimeapi.LinuxContainerUser{Uid: 1001, Gid: 1002, SupplementalGroups: []int64{1002, 5}}
			if got := c.status().GetUser().GetLinux(); !proto.Equal(got, want) {
				n.t.Errorf("got %v, want %v", got, want)
			}
		},
		"verbose": func(n *node) {
			c := n.runPod("verbose").run("c", forever)
			resp, err := n.Runtime.ContainerStatus(n.context(), &runtimeapi.ContainerStatusRequest{ContainerId: c.id, Verbose: true})
			if err != nil {
				n.t.Fatal(err)
			}
			var info struct {
				SandboxID   string
				PID         int
				Image       string
				RuntimeSpec struct{ Process struct{ Args []string } }
			}
			if err := json.Unmarshal([]byte(resp.GetInfo()["info"]), &info); err != nil {
				n.t.Fatal(err)
			}
			if fmt.Sprint(info.PID) != c.hostPID() || info.SandboxID != c.pod.id || info.Image != busyboxTag || !slices.Equal(info.RuntimeSpec.Process.Args, []string{"sh", "-c", forever}) {
				n.t.Errorf("info: %+v", info)
			}
			if resp, err := n.Runtime.ContainerStatus(n.context(), &runtimeapi.ContainerStatusRequest{ContainerId: c.id}); err != nil || len(resp.GetInfo()) != 0 {
				n.t.Errorf("info unasked: %v, %v", resp.GetInfo(), err)
			}
		},
		"tty": func(n *node) {
			c := n.runPod("tty").run("c", "test -t 0 && test -t 1 && echo $TERM; echo err >&2", func(c *runtimeapi.ContainerConfig) { c.Tty = true })
			if s := c.waitExit(); s.GetExitCode() != 0 || c.logged("stdout") != "xterm\r\nerr\r\n" || c.logged("stderr") != "" {
				n.t.Errorf("exit code %d, stdout %q, stderr %q", s.GetExitCode(), c.logged("stdout"), c.logged("stderr"))
			}
		},
		"stdin": func(n *node) {
			p := n.runPod("stdin")
			if got, code := p.output("closed", "cat; echo end"); got != "end\n" || code != 0 {
				n.t.Errorf("without stdin: %q, exit code %d", got, code)
			}
			for _, once := range []bool{false, true} { // nobody has attached yet, so it does not end
				c := p.run(fmt.Sprint("open-", once), "echo waits; cat; echo end", func(c *runtimeapi.ContainerConfig) { c.Stdin, c.StdinOnce = true, once })
				n.eventually("it reads", func() bool { return c.logged("stdout") == "waits\n" })
				if got := c.exec("sh", "-c", "readlink /proc/1/fd/0"); strings.Contains(got, "/dev/null") {
					n.t.Errorf("stdin_once %v: stdin is %s", once, got)
				}
				c.stop(0)
				if got := c.logged("stdout"); got != "waits\n" {
					n.t.Errorf("stdin_once %v: %q", once, got)
				}
			}
		},
		"sandbox_config": func(n *node) { // the pod's own counts
			p := n.runPod("sandbox-config")
			other := n.podConfig("other", hostNetwork)
			resp, err := n.Runtime.CreateContainer(n.context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: p.containerConfig("c", "true"), SandboxConfig: other})
			if err != nil {
				n.t.Fatal(err)
			}
			c := &container{pod: p, id: resp.GetContainerId(), name: "c"}
			if got := c.status().GetLogPath(); got != c.logPath() {
				n.t.Errorf("log_path %s", got)
			}
		},
	})
}
