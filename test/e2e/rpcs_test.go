package e2e

import (
	"fmt"
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

// stopAsync calls StopContainer and gives its error when it has returned.
func (c *container) stopAsync(timeout int64) <-chan error {
	done := make(chan error, 1)
	ctx := c.context()
	go func() {
		_, err := c.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c.id, Timeout: timeout})
		done <- err
	}()
	return done
}

func (n *node) startErr(id string) error {
	_, err := n.Runtime.StartContainer(n.context(), &runtimeapi.StartContainerRequest{ContainerId: id})
	return err
}

func (n *node) reopenErr(id string) error {
	_, err := n.Runtime.ReopenContainerLog(n.context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: id})
	return err
}

func TestRPCs(t *testing.T) {
	n := newNode(t)
	subtests(t, n, map[string]func(*node){
		"unknown ids": func(n *node) {
			for _, id := range []string{strings.Repeat("0", 64), "no-such-id", "../../etc/passwd", "-h", "a\nb"} {
				calls := map[string]func() error{
					"ContainerStatus": func() error {
						_, err := n.Runtime.ContainerStatus(n.context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
						return err
					},
					"PodSandboxStatus": func() error {
						_, err := n.Runtime.PodSandboxStatus(n.context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
						return err
					},
					"ContainerStats": func() error {
						_, err := n.Runtime.ContainerStats(n.context(), &runtimeapi.ContainerStatsRequest{ContainerId: id})
						return err
					},
					"UpdateContainerResources": func() error {
						_, err := n.Runtime.UpdateContainerResources(n.context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id})
						return err
					},
					"StartContainer": func() error { return n.startErr(id) }, "ReopenContainerLog": func() error { return n.reopenErr(id) },
				}
				for name, call := range calls {
					if err := call(); err == nil {
						n.t.Errorf("%s of %q succeeds", name, id)
					} else {
						wantError(n.t, err, codes.NotFound)
					}
				}
				if err := n.removePod(id); err != nil {
					n.t.Errorf("stopping and removing pod %q: %v", id, err)
				}
				c := &container{pod: &pod{node: n}, id: id}
				c.stop(0)
				c.remove()
			}
		},
		"prefixes": func(n *node) {
			p := n.runPod("prefixes")
			var ids []string
			for i := range 17 { // of which two begin alike
				ids = append(ids, p.create(fmt.Sprint("c", i), "true").id)
			}
			slices.Sort(ids)
			for i, id := range ids[1:] {
				if ids[i][0] != id[0] {
					continue
				}
				_, err := n.Runtime.ContainerStatus(n.context(), &runtimeapi.ContainerStatusRequest{ContainerId: id[:1]})
				wantError(n.t, err, codes.InvalidArgument, id[:1])
				_, err = n.Runtime.RemoveContainer(n.context(), &runtimeapi.RemoveContainerRequest{ContainerId: id[:1]})
				wantError(n.t, err, codes.InvalidArgument, id[:1])
			}
			c := &container{pod: p, id: ids[3][:20]}
			if got := c.status().GetId(); got != ids[3] {
				n.t.Errorf("%s is %s", ids[3][:20], got)
			}
			c.remove()
			_, err := n.Runtime.ContainerStatus(n.context(), &runtimeapi.ContainerStatusRequest{ContainerId: ids[3]})
			wantError(n.t, err, codes.NotFound)
		},
		"order": func(n *node) {
			p := n.runPod("order")
			var want []string
			for i := range 5 {
				want = append(want, p.create(fmt.Sprint("c", i), "true").id)
			}
			resp, err := n.Runtime.ListContainers(n.context(), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: p.id}})
			if err != nil {
				n.t.Fatal(err)
			}
			var got []string
			last := int64(0)
			for _, c := range resp.GetContainers() {
				got = append(got, c.GetId())
				if c.GetCreatedAt() <= last {
					n.t.Errorf("created at %d after %d", c.GetCreatedAt(), last)
				}
				last = c.GetCreatedAt()
			}
			if !slices.Equal(got, want) {
				n.t.Errorf("listed %v, made %v", got, want)
			}
		},
		"shorter timeout wins": func(n *node) {
			c := n.runPod("stops").run("c", "trap 'echo asked' TERM; echo ready; while :; do sleep 0.05; done")
			n.eventually("the trap is set", func() bool { return strings.Contains(c.logged("stdout"), "ready") })
			long := c.stopAsync(50)
			n.eventually("the signal has come", func() bool { return strings.Contains(c.logged("stdout"), "asked") })
			again := c.stopAsync(40)
			c.stop(1)
			for _, done := range []<-chan error{long, again} {
				if err := <-done; err != nil {
					n.t.Error(err)
				}
			}
			if s := c.status(); s.GetExitCode() != 137 || c.logged("stdout") != "ready\nasked\n" {
				n.t.Errorf("exit code %d, log %q: the signal is to be sent once", s.GetExitCode(), c.logged("stdout"))
			}
		},
		"stop takes every process": func(n *node) {
			p := n.runPod("processes", hostNetwork, func(c *runtimeapi.PodSandboxConfig) {
				c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_NODE
			})
			const child = "setsid sleep 86399 & echo $!"
			for name, script := range map[string]string{"left": child, "running": child + "; wait"} {
				c := p.run(name, script)
				var pid string
				n.eventually("the child runs", func() bool { pid = strings.TrimSpace(c.logged("stdout")); return pid != "" })
				c.stop(0)
				c.waitExit()
				n.eventually("the child of "+name+" is gone", func() bool { return !strings.Contains(cmdline(pid), "86399") })
			}
		},
		"start again": func(n *node) {
			p := n.runPod("start")
			c := p.run("c", "exit 3")
			c.waitExit()
			wantError(n.t, n.startErr(c.id), codes.FailedPrecondition, c.id)
			if s := c.status(); s.GetStartedAt() == 0 || s.GetFinishedAt() < s.GetStartedAt() || s.GetCreatedAt() > s.GetStartedAt() {
				n.t.Errorf("times of a short life: %v", s)
			}
			// The same name with the next attempt is another container, with the same one it is the first or its successor.
			next := p.create("c", "true", func(c *runtimeapi.ContainerConfig) { c.Metadata.Attempt = 1 })
			if next.id == c.id || next.status().GetMetadata().GetAttempt() != 1 || c.status().GetMetadata().GetAttempt() != 0 {
				n.t.Errorf("attempts: %v, %v", next.status().GetMetadata(), c.status().GetMetadata())
			}
		},
		"failed start": func(n *node) {
			p := n.runPod("fails")
			c := p.create("c", "", func(c *runtimeapi.ContainerConfig) { c.Command = []string{"/no/such/program"} })
			if err := n.startErr(c.id); err == nil || !strings.Contains(err.Error(), "/no/such/program") {
				n.t.Errorf("start: %v", err)
			}
			if s := c.status(); s.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED || s.GetReason() != "StartError" || s.GetExitCode() != 128 ||
				!strings.Contains(s.GetMessage(), "/no/such/program") || s.GetFinishedAt() == 0 {
				n.t.Errorf("status: %v", s)
			}
		},
		"logs stay": func(n *node) {
			c := n.runPod("logs").run("c", "echo kept; "+forever)
			n.eventually("it has logged", func() bool { return strings.Contains(c.logged("stdout"), "kept") })
			c.remove() // though it runs
			if got := c.logged("stdout"); got != "kept\n" {
				n.t.Errorf("log after the removal: %q", got)
			}
		},
		"failed reopening leaves nothing": func(n *node) {
			p := n.runPod("reopen")
			c, outside := p.run("c", forever), filepath.Join(n.LogDir, "reopened-outside.log")
			rotated := c.logPath() + ".1"
			if err := os.Rename(c.logPath(), rotated); err != nil {
				n.t.Fatal(err)
			}
			if err := os.Symlink(outside, c.logPath()); err != nil {
				n.t.Fatal(err)
			}
			if err := n.reopenErr(c.id); err == nil {
				n.t.Error("a log was opened through a symbolic link")
			}
			if _, err := os.Lstat(outside); err == nil {
				n.t.Errorf("%s was made", outside)
			}
			if err := os.Remove(c.logPath()); err != nil {
				n.t.Fatal(err)
			}
			c.stop(0)
			wantError(n.t, n.reopenErr(c.id), codes.FailedPrecondition, c.id)
			if _, err := os.Lstat(c.logPath()); err == nil {
				n.t.Error("the log of a container that has ended was made anew")
			}
		},
		"lists and statuses agree": func(n *node) {
			p := n.runPod("agree")
			a, b := p.run("a", forever), p.create("b", "true")
			if err := n.removePod(p.id); err != nil {
				n.t.Fatal(err)
			}
			for _, c := range []*container{a, b} {
				_, err := n.Runtime.ContainerStatus(n.context(), &runtimeapi.ContainerStatusRequest{ContainerId: c.id})
				wantError(n.t, err, codes.NotFound, c.id)
			}
			resp, err := n.Runtime.ListContainers(n.context(), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: p.id}})
			if err != nil || len(resp.GetContainers()) != 0 || len(n.listed(&runtimeapi.PodSandboxFilter{Id: p.id})) != 0 {
				n.t.Errorf("listed after the removal: %v, %v", resp.GetContainers(), err)
			}
		},
		"stats": func(n *node) {
			p := n.runPod("stats")
			c := p.run("c", forever, func(c *runtimeapi.ContainerConfig) { c.Linux.Resources.MemoryLimitInBytes = 64 << 20 })
			n.eventually("there is a rate", func() bool {
				resp, err := n.Runtime.ContainerStats(n.context(), &runtimeapi.ContainerStatsRequest{ContainerId: c.id})
				if free := resp.GetStats().GetMemory().GetAvailableBytes().GetValue(); err != nil || free == 0 || free > 64<<20 {
					n.t.Fatalf("available memory: %d, %v", free, err)
				}
				return resp.GetStats().GetCpu().GetUsageNanoCores() != nil
			})
			for name, f := range map[string]*runtimeapi.ContainerStatsFilter{"id": {Id: c.id}, "pod_sandbox_id": {PodSandboxId: p.id}, "both": {Id: c.id[:30], PodSandboxId: p.id}} {
				resp, err := n.Runtime.ListContainerStats(n.context(), &runtimeapi.ListContainerStatsRequest{Filter: f})
				if err != nil || len(resp.GetStats()) != 1 {
					n.t.Fatalf("%s: %v, %v", name, resp, err)
				}
				s := resp.GetStats()[0]
				layer := s.GetWritableLayer()
				if s.GetCpu().GetTimestamp() == 0 || s.GetMemory().GetTimestamp() == 0 || s.GetMemory().GetUsageBytes().GetValue() == 0 || s.GetMemory().GetPageFaults().GetValue() == 0 ||
					s.GetMemory().GetRssBytes() == nil || s.GetMemory().GetMajorPageFaults() == nil || layer.GetTimestamp() == 0 || layer.GetInodesUsed() == nil {
					n.t.Errorf("%s: %v", name, s)
				}
				if _, err := os.Stat(layer.GetFsId().GetMountpoint()); err != nil {
					n.t.Errorf("mount point: %v", err)
				}
			}
			resp, err := n.Runtime.ListContainerStats(n.context(), &runtimeapi.ListContainerStatsRequest{Filter: &runtimeapi.ContainerStatsFilter{PodSandboxId: strings.Repeat("0", 64)}})
			if err != nil || len(resp.GetStats()) != 0 {
				n.t.Errorf("of an unknown pod: %v, %v", resp, err)
			}
		},
		"update ignores": func(n *node) {
			c := n.runPod("update").run("c", forever)
			before := c.status()
			_, err := n.Runtime.UpdateContainerResources(n.context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.id,
				Windows: &runtimeapi.WindowsContainerResources{CpuShares: 7}, Annotations: map[string]string{"a": "b"}})
			if after := c.status(); err != nil || !proto.Equal(before, after) {
				n.t.Errorf("%v\n%v\n%v", err, before, after)
			}
		},
		"version": func(n *node) {
			for _, asked := range []string{"", "0.1.0", "9.9"} {
				v, err := n.Runtime.Version(n.context(), &runtimeapi.VersionRequest{Version: asked})
				if err != nil || v.GetVersion() != "0.1.0" || v.GetRuntimeName() != "gantry" || v.GetRuntimeVersion() == "" || v.GetRuntimeApiVersion() != "v1" {
					n.t.Errorf("asked for %q: %v, %v", asked, v, err)
				}
			}
		},
		"cgroup driver": func(n *node) {
			resp, err := n.Runtime.RuntimeConfig(n.context(), &runtimeapi.RuntimeConfigRequest{})
			if err != nil || resp.GetLinux() == nil || resp.GetLinux().GetCgroupDriver() != runtimeapi.CgroupDriver_CGROUPFS {
				n.t.Errorf("%v, %v", resp, err)
			}
		},
		"pod_cidr": func(n *node) {
			for _, c := range []*runtimeapi.RuntimeConfig{nil, {}, {NetworkConfig: &runtimeapi.NetworkConfig{}}} {
				if _, err := n.Runtime.UpdateRuntimeConfig(n.context(), &runtimeapi.UpdateRuntimeConfigRequest{RuntimeConfig: c}); err != nil {
					n.t.Errorf("%v: %v", c, err)
				}
			}
			_, err := n.Runtime.UpdateRuntimeConfig(n.context(), &runtimeapi.UpdateRuntimeConfigRequest{
				RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: "10.0.0.0/99"}}})
			wantError(n.t, err, codes.InvalidArgument, "pod_cidr", "10.0.0.0/99")
		},
		"verbose status": func(n *node) {
			resp, err := n.Runtime.Status(n.context(), &runtimeapi.StatusRequest{Verbose: true})
			if err != nil || !strings.Contains(resp.GetInfo()["config"], n.Dir) {
				n.t.Errorf("%v, %v", resp.GetInfo(), err)
			}
			if resp, err = n.Runtime.Status(n.context(), &runtimeapi.StatusRequest{}); err != nil || len(resp.GetInfo()) != 0 || len(resp.GetStatus().GetConditions()) < 2 {
				n.t.Errorf("%v, %v", resp, err)
			}
		},
		"images": func(n *node) {
			ref := n.pull(images.Users)
			img := n.image(images.Users)
			if ref != img.GetId() || img.GetUid().GetValue() != 1000 || img.GetUsername() != "" || img.GetSpec() == nil || img.GetPinned() {
				n.t.Errorf("pulled as %s: %v", ref, img)
			}
			// The pod that an image is pulled for changes nothing.
			const named = "gcr.io/k8s-staging-cri-tools/test-image-user-username:latest"
			if _, err := n.Image.PullImage(n.context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: named}, SandboxConfig: n.podConfig("no-such-pod")}); err != nil {
				n.t.Error(err)
			}
			_, err := n.Image.PullImage(n.context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: named, RuntimeHandler: "runc"}})
			if err != nil {
				n.t.Error(err)
			}
			_, err = n.Image.PullImage(n.context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: named, RuntimeHandler: "no-such-handler"}})
			wantError(n.t, err, codes.InvalidArgument, "runtime_handler", "no-such-handler")
			if img := n.image(named); img.GetUsername() != "www-data" || img.GetUid() != nil {
				n.t.Errorf("user of the image: %v", img)
			}
			resp, err := n.Image.ImageStatus(n.context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: images.Users}, Verbose: true})
			if err != nil || len(resp.GetInfo()) == 0 {
				n.t.Errorf("verbose: %v, %v", resp.GetInfo(), err)
			}
			fs, err := n.Image.ImageFsInfo(n.context(), &runtimeapi.ImageFsInfoRequest{})
			if err != nil || len(fs.GetImageFilesystems()) != 1 || len(fs.GetContainerFilesystems()) != 1 {
				n.t.Fatalf("%v, %v", fs, err)
			}
			f := fs.GetImageFilesystems()[0]
			if _, err := os.Stat(f.GetFsId().GetMountpoint()); err != nil || f.GetUsedBytes() == nil || f.GetInodesUsed() == nil || f.GetTimestamp() == 0 {
				n.t.Errorf("%v, %v", f, err)
			}
		},
	})
}

// cmdline is a process's, "" when it is gone.
func cmdline(pid string) string {
	b, err := os.ReadFile("/proc/" + pid + "/cmdline")
	if err != nil {
		return ""
	}
	return string(b)
}
